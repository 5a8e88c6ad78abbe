"""The transformers backend on a tiny random Llama, checked against plain one-by-one generation."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experts.backends.huggingface import HuggingFaceExpert
from experts.specs import HuggingFaceSpec
from experts.spending import NOT_ASKED, NOT_PAID, SpendCap
from experts.types import Query
from leeroo_env.errors import InputError
from tests.experts.tiny_llama import CHAT_TEMPLATE, make_tiny_llama

torch.set_num_threads(1)
TEXTS = [
    "7+5=",
    "which is larger, 12 or 9?",
    "a",
    "sort: 3 1 2 ->",
    "z" * 40,
    "x y",
    "reverse abc",
    "12*12",
    "b",
    "hi there",
]
QUERIES = [Query(f"q{i}", text) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_llama(tmp_path_factory.mktemp("model"))


def make_spec(directory, **fields) -> HuggingFaceSpec:
    fields = {
        "name": "tiny",
        "model": "tiny",
        "usd_per_mtok_in": 1.0,
        "usd_per_mtok_out": 2.0,
        "max_tokens": 24,
    } | fields
    spec = HuggingFaceSpec.model_validate({"backend": "huggingface", "batch_size": 4} | fields)
    return spec.model_copy(update={"directory": directory})


def one_by_one(directory, prompt: str, max_tokens: int) -> tuple[str, int, int]:
    """Greedy text, prompt tokens and new tokens by a loop over single tokens."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    network = AutoModelForCausalLM.from_pretrained(directory).eval()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    length = ids.shape[1]
    with torch.inference_mode():
        while ids.shape[1] < length + max_tokens:
            token = network(ids).logits[0, -1].argmax()
            ids = torch.cat([ids, token.view(1, 1)], dim=1)
            if token == tokenizer.eos_token_id:
                break
    text = tokenizer.decode(ids[0, length:], skip_special_tokens=True)
    assert isinstance(text, str)
    return text, length, ids.shape[1] - length


def test_batches_equal_one_by_one(model):
    answers = HuggingFaceExpert(make_spec(model), SpendCap()).answer(QUERIES)
    expected = [one_by_one(model, text, 24) for text in TEXTS]
    assert [(a.text, a.prompt_tokens, a.completion_tokens) for a in answers] == expected
    assert len({a.completion_tokens for a in answers}) > 1  # some end early: the end token is counted per answer
    for answer in answers:
        assert answer.cost_usd == pytest.approx((answer.prompt_tokens + 2 * answer.completion_tokens) / 1e6)
        assert answer.latency_s > 0 and answer.error is None


def test_the_prompt_template_and_the_system_prompt_are_used(model):
    spec = make_spec(model, prompt="Q {text}\nA ", system="Be brief.")
    answer = HuggingFaceExpert(spec, SpendCap()).answer(QUERIES[:1])[0]
    assert answer.text == one_by_one(model, "Be brief.\n\nQ 7+5=\nA ", 24)[0]


def test_the_chat_template_is_used_where_there_is_one(tmp_path):
    directory = make_tiny_llama(tmp_path, chat_template=CHAT_TEMPLATE)
    with_template = HuggingFaceExpert(make_spec(directory, system="S"), SpendCap()).answer(QUERIES[:2])
    without = HuggingFaceExpert(make_spec(directory, chat=False), SpendCap()).answer(QUERIES[:2])
    assert with_template[0].text == one_by_one(directory, "[system]S[user]7+5=[a]", 24)[0]
    assert without[0].text == one_by_one(directory, "7+5=", 24)[0]


def test_stop_strings_cut_text_and_count(model):
    no_special = {"extra": {"suppress_tokens": [0, 1, 2]}}  # one character a token
    whole = HuggingFaceExpert(make_spec(model, generation=no_special), SpendCap()).answer(QUERIES[:1])[0]
    stop = whole.text[5]
    drawn = no_special | {"stop": [stop]}
    cut = HuggingFaceExpert(make_spec(model, generation=drawn), SpendCap()).answer(QUERIES[:1])[0]
    assert len(whole.text) == whole.completion_tokens == 24
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.completion_tokens == whole.text.index(stop) + 1


def test_sampling_with_a_seed_repeats_and_leaves_the_generator_alone(model):
    expert = HuggingFaceExpert(make_spec(model, generation={"temperature": 1.5, "seed": 7}), SpendCap())
    state = torch.random.get_rng_state()
    first, again = expert.answer(QUERIES), expert.answer(QUERIES)
    assert [a.text for a in first] == [a.text for a in again]
    assert [a.text for a in first] != [a.text for a in HuggingFaceExpert(make_spec(model), SpendCap()).answer(QUERIES)]
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_prompt_that_is_too_long_fails_alone(model):
    answers = HuggingFaceExpert(make_spec(model), SpendCap()).answer([QUERIES[0], Query("long", "w" * 120), QUERIES[1]])
    assert [a.error is None for a in answers] == [True, False, True]
    assert "120 prompt tokens and max_tokens 24 exceed 128" in answers[1].error


def test_a_batch_that_fails_is_an_answer(model, monkeypatch):
    expert = HuggingFaceExpert(make_spec(model), SpendCap())
    _, network = expert._loaded()
    generate = network.generate

    def fail_on_wide_batches(**kwargs):
        if kwargs["input_ids"].shape[1] > 30:
            raise torch.OutOfMemoryError("no memory left")
        return generate(**kwargs)

    monkeypatch.setattr(network, "generate", fail_on_wide_batches)
    answers = expert.answer(QUERIES)
    failed = [a for a in answers if a.error]
    assert 0 < len(failed) < len(answers) and "no memory left" in failed[0].error


def test_the_cap_cuts_batches(model):
    price = (10 * 1.0 + 24 * 2.0) / 1e6
    spend_cap = SpendCap(price * 4.5)
    answers = HuggingFaceExpert(make_spec(model), spend_cap).answer([Query(f"s{i}", "0123456789") for i in range(30)])
    assert {a.error for a in answers} == {None, NOT_ASKED}
    assert price * 3.5 < spend_cap.spent_usd <= price * 4.5
    assert spend_cap.spent_usd == pytest.approx(sum(a.cost_usd for a in answers))


def test_price_by_the_second_is_shared_in_the_batch(model):
    spec = make_spec(model, usd_per_mtok_in=None, usd_per_mtok_out=None, usd_per_second=4.0, batch_size=16)
    answers = HuggingFaceExpert(spec, SpendCap()).answer(QUERIES)
    assert sum(a.cost_usd for a in answers) == pytest.approx(4.0 * answers[0].latency_s)


def test_a_model_that_cannot_be_loaded(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="expert 'tiny': model 'tiny' cannot be loaded"):
        HuggingFaceExpert(make_spec(tmp_path), SpendCap()).answer(QUERIES)


def test_the_mean_log_probability_is_that_of_one_forward_pass(model):
    """Protects: evidence must belong to the tokens of its own row, whatever the batch, its padding and its length."""
    answers = HuggingFaceExpert(make_spec(model), SpendCap()).answer(QUERIES)
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()
    for query, answer in zip(QUERIES, answers, strict=True):
        ids = tokenizer(query.text, return_tensors="pt").input_ids
        width, chosen = ids.shape[1], []
        with torch.inference_mode():
            for _ in range(answer.completion_tokens):
                logprobs = network(ids).logits[0, -1].log_softmax(0)
                token = logprobs.argmax()
                chosen.append(float(logprobs[token]))
                ids = torch.cat([ids, token.view(1, 1)], dim=1)
        assert ids.shape[1] - width == answer.completion_tokens
        assert answer.logprob == pytest.approx(sum(chosen) / len(chosen), abs=1e-4)


def test_answers_are_cut_off_where_their_limits_end(model):
    """Each alone, though they are generated in batches, at tokens that are counted and not guessed."""
    expert = HuggingFaceExpert(make_spec(model), SpendCap())
    whole = expert.answer(QUERIES)
    most = [0, 1, 5, 23, 24, 30, 2, 3, 4, 7]
    limits = [(a.prompt_tokens + 2 * n) * 1e-6 * (1 + 1e-12) for a, n in zip(whole, most, strict=True)]
    answers = expert.answer(QUERIES, limits_usd=limits)
    assert (answers[0].error, answers[0].billed_usd) == (NOT_PAID, 0)
    for query, full, answer, n, usd in list(zip(QUERIES, whole, answers, most, limits, strict=True))[1:]:
        text, _, tokens = one_by_one(model, query.text, min(n, 24))
        assert answer.completion_tokens == tokens <= n and answer.billed_usd <= usd
        assert answer.text == (text if text.strip() else "")
        if full.completion_tokens > n:
            assert answer.finish_reason == "budget"
        else:
            assert (answer.text, answer.finish_reason) == (full.text, full.finish_reason)
