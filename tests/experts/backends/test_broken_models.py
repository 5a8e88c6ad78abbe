"""Local models whose files hold settings of their own, refuse the system role, run code or are broken."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import experts.tiny
from experts.backends.huggingface import HuggingFaceExpert
from experts.specs import HuggingFaceSpec
from experts.spending import SpendCap
from experts.types import Answer, Query
from leeroo_env.errors import InputError

torch.set_num_threads(1)
NANO = Path(experts.tiny.__file__).parent / "weights" / "nano"
QUERIES = [Query("a", "1+1="), Query("b", "12+34=")]
GREEDY = ["111111111111", "111110000000"]
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
LAST = "{{ messages[-1]['content'] }}"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def asked(*_: object) -> str:
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(NANO, tmp_path / "model")


def change(directory: Path, file: str, **fields: Any) -> None:
    path = directory / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def ask(directory: Path, spend_cap: SpendCap | None = None, **fields: Any) -> list[Answer]:
    fields = {"usd_per_mtok_in": 1.0, "usd_per_mtok_out": 1.0, "max_tokens": 12} | fields
    spec = HuggingFaceSpec.model_validate({"backend": "huggingface", "name": "one", "model": "m"} | fields)
    spec = spec.model_copy(update={"directory": directory})
    return HuggingFaceExpert(spec, spend_cap or SpendCap()).answer(QUERIES)


def texts(answers: list[Answer]) -> list[str]:
    return [answer.error or answer.text for answer in answers]


def refusal(directory: Path, **fields: Any) -> str:
    with pytest.raises(InputError, match=r"^expert 'one': ") as caught:
        ask(directory, **fields)
    message = str(caught.value)
    assert message.isprintable()
    return message


OWN_SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 5.0},
    {"no_repeat_ngram_size": 1},
    {"num_beams": 4},
    {"num_beams": 4, "num_return_sequences": 2},
    {"num_return_sequences": 2},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"do_sample": True, "temperature": 2.0, "top_k": 3},
    {"temperature": -1, "do_sample": True},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"min_new_tokens": 12},
    {"min_length": 50},
    {"max_length": 3},
    {"max_new_tokens": 2},
    {"max_time": 0.0},
    {"suppress_tokens": list(range(3, 20))},
    {"begin_suppress_tokens": list(range(3, 20))},
    {"forced_bos_token_id": 5, "forced_eos_token_id": 5},
    {"bad_words_ids": [[5], [6]]},
    {"sequence_bias": [[[5], -50.0]]},
    {"guidance_scale": 4.0},
    {"exponential_decay_length_penalty": [1, 9.0]},
    {"cache_implementation": "static"},
    {"cache_implementation": "nonsense"},
    {"use_cache": False},
    {"stop_strings": ["1"]},
    {"watermarking_config": {"bias": 5.0}},
    {"early_stopping": "nonsense"},
    {"compile_config": {"x": 1}},
    {"prompt_lookup_num_tokens": 3},
    {"return_dict_in_generate": True, "output_scores": True},
    {"custom_generate": "someone/code"},
    {"bos_token_id": "x", "pad_token_id": "x"},
]


@pytest.mark.parametrize("own", OWN_SETTINGS, ids=lambda own: "+".join(own))
def test_temperature_0_is_greedy_whatever_the_model_says(model: Path, own: dict[str, Any]):
    change(model, "generation_config.json", **own)
    assert texts(ask(model)) == GREEDY


def test_sampling_settings_are_ours_too(model: Path):
    sampling: dict[str, Any] = {"generation": {"temperature": 1.5, "seed": 3}}
    expected = texts(ask(model, **sampling))
    assert expected != GREEDY
    change(model, "generation_config.json", top_k=1, repetition_penalty=5.0, min_p=0.9, typical_p=0.1, top_p=0.01)
    assert texts(ask(model, **sampling)) == expected
    assert texts(ask(model, generation={"temperature": 1e-30})) == GREEDY


def test_settings_in_config_json_do_not_count(model: Path):
    change(model, "config.json", repetition_penalty=5.0, num_beams=3, min_length=50)
    assert texts(ask(model)) == GREEDY


@pytest.mark.parametrize("content", [None, "{}", '{"eos_token_id": null}'])
def test_end_tokens_are_also_found_without_generation_settings(model: Path, content: str | None):
    end = json.loads((model / "config.json").read_text())["eos_token_id"]
    assert isinstance(end, int)
    if content is None:
        (model / "generation_config.json").unlink()
    else:
        (model / "generation_config.json").write_text(content)
    assert texts(ask(model)) == GREEDY


def test_the_models_end_tokens_count(model: Path):
    one, zero = (ask_token(model, text) for text in "10")
    change(model, "generation_config.json", eos_token_id=[zero])
    first, second = ask(model)
    assert (first.finish_reason, first.completion_tokens) == ("length", 12)
    assert (second.finish_reason, second.text, second.completion_tokens) == ("stop", "11111", 6)
    change(model, "generation_config.json", eos_token_id=one)
    assert {a.completion_tokens for a in ask(model)} == {1}


def ask_token(directory: Path, text: str) -> int:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    return int(tokenizer(text, add_special_tokens=False)["input_ids"][-1])


def test_a_stop_string_is_a_stop(model: Path):
    assert [a.finish_reason for a in ask(model, generation={"stop": ["0"]})] == ["length", "stop"]


@pytest.mark.parametrize(
    "template", [NO_SYSTEM + LAST, LAST, "{% for m in messages %}{{ m[m['role']] }}{% endfor %}" + LAST]
)
def test_a_system_text_that_a_template_refuses_goes_before_the_users(model: Path, template: str):
    change(model, "tokenizer_config.json", chat_template=template)
    merged = ask(model, system="5+5=")
    assert [a.prompt_tokens for a in merged] == [a.prompt_tokens for a in ask(model, prompt="5+5=\n\n{text}")]
    assert texts(merged) == texts(ask(model, prompt="5+5=\n\n{text}"))
    change(model, "tokenizer_config.json", chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert texts(ask(model, system="5+5=")) == texts(ask(model, prompt="5+5={text}"))


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('never') }}",
        "{% for %}",
        "{{ messages[7]['content'] + 1 }}",
        "{{ nothing.at.all }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
        [{"name": "other", "template": LAST}],
    ],
)
def test_a_broken_template_is_one_line(model: Path, template: Any):
    change(model, "tokenizer_config.json", chat_template=template)
    assert "chat template" in refusal(model) or "cannot be loaded" in refusal(model)


def test_chat_without_a_template_is_one_line(model: Path):
    assert refusal(model, chat=True) == "expert 'one': chat: true, but the tokenizer of 'm' has no chat template"


def cut(directory: Path, share: float, file: str = "model.safetensors") -> None:
    data = (directory / file).read_bytes()
    (directory / file).write_bytes(data[: int(len(data) * share)])


def write(directory: Path, file: str, content: str) -> int:
    return (directory / file).write_text(content)


def remove(directory: Path, *files: str) -> None:
    for file in files:
        (directory / file).unlink()


def lose_a_shard(directory: Path) -> None:
    remove(directory, "model.safetensors")
    write(directory, "model.safetensors.index.json", '{"metadata": {}, "weight_map": {"a": "model-2.safetensors"}}')


BREAKS: dict[str, Callable[[Path], object]] = {
    "half of the weights": lambda d: cut(d, 0.5),
    "a byte of the weights": lambda d: cut(d, 1e-5),
    "no weights": lambda d: remove(d, "model.safetensors"),
    "empty weights": lambda d: cut(d, 0),
    "a shard that is missing": lose_a_shard,
    "a layer without weights": lambda d: change(
        d, "config.json", num_hidden_layers=json.loads((d / "config.json").read_text())["num_hidden_layers"] + 1
    ),
    "weights of another width": lambda d: change(d, "config.json", hidden_size=16),
    "too few embeddings for the tokenizer": lambda d: change(d, "config.json", vocab_size=4),
    "half of the tokenizer": lambda d: cut(d, 0.5, "tokenizer.json"),
    "an empty tokenizer": lambda d: write(d, "tokenizer.json", "{}"),
    "no tokenizer": lambda d: remove(d, "tokenizer.json", "tokenizer_config.json"),
    "half of config.json": lambda d: cut(d, 0.5, "config.json"),
    "config.json without a type": lambda d: write(d, "config.json", "{}"),
    "a list as config.json": lambda d: write(d, "config.json", "[]"),
    "a type that nobody knows": lambda d: change(d, "config.json", model_type="nobody-knows"),
    "a model that writes nothing": lambda d: change(d, "config.json", model_type="vit"),
    "a text as size": lambda d: change(d, "config.json", hidden_size="wide"),
    "half of generation_config.json": lambda d: cut(d, 0.5, "generation_config.json"),
    "a list as generation_config.json": lambda d: write(d, "generation_config.json", "[]"),
    "an end that is no token": lambda d: change(d, "generation_config.json", eos_token_id="</s>"),
    "4 bits without bitsandbytes": lambda d: change(
        d, "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    ),
    "a quantization without its package": lambda d: change(
        d, "config.json", quantization_config={"quant_method": "gptq", "bits": 4}
    ),
    "an attention without its package": lambda d: change(d, "config.json", attn_implementation="nonsense"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_broken_models_are_one_line(model: Path, what: str):
    BREAKS[what](model)
    assert "model 'm' cannot be" in refusal(model)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:99", "gpu", "mps", "cpu:x", ""])
def test_a_device_that_is_not_there_is_one_line(model: Path, device: str):
    if device == "cuda:0" and torch.cuda.is_available():
        pytest.skip("there is one")
    assert "model 'm' cannot be loaded" in refusal(model, device=device)


def test_code_among_a_models_files_runs_only_if_the_pool_says_so(model: Path, tmp_path: Path):
    ran = tmp_path / "ran"
    (model / "own.py").write_text(
        f"open({str(ran)!r}, 'w')\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    change(
        model,
        "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    )
    assert "custom code" in refusal(model) and not ran.exists()
    assert texts(ask(model, trust_remote_code=True)) == GREEDY and ran.exists()


def test_code_of_a_tokenizer_and_of_generation_does_not_run(model: Path, tmp_path: Path):
    ran = tmp_path / "ran"
    (model / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text(f"open({str(ran)!r}, 'w')\n")
    assert texts(ask(model)) == GREEDY
    change(model, "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    with contextlib.suppress(InputError):
        ask(model)
    assert not ran.exists()


def test_an_empty_reply_is_an_error_that_was_paid(model: Path):
    one = ask_token(model, "1")
    change(model, "generation_config.json", eos_token_id=one)
    spend_cap = SpendCap()
    answers = ask(model, spend_cap)
    for answer in answers:
        assert answer.error == "empty reply (finish_reason stop)" and answer.is_empty and answer.text == ""
        assert answer.cost_usd == 0 and answer.completion_tokens == 1
        assert answer.lost_usd == pytest.approx((answer.prompt_tokens + 1) / 1e6)
    assert spend_cap.spent_usd == pytest.approx(sum(answer.billed_usd for answer in answers))


def test_reasoning_that_the_template_opens_and_nothing_closes_is_no_answer(model: Path):
    template = "{{ messages[-1]['content'] }}{% if add_generation_prompt %}<think>\n{% endif %}"
    change(model, "tokenizer_config.json", chat_template=template)
    for answer in ask(model, generation={"extra": {"min_new_tokens": 12}}):
        assert answer.error == "empty reply (finish_reason length)" and answer.finish_reason == "length"
        assert answer.reasoning and answer.lost_usd > 0


def test_a_batch_that_fails_costs_its_time(model: Path):
    by_second = {"usd_per_mtok_in": None, "usd_per_mtok_out": None, "usd_per_second": 1.0}
    broken = {"generation": {"extra": {"bad_words_ids": [[10**9]]}}}
    spend_cap = SpendCap()
    answers = ask(model, spend_cap, **by_second, **broken)
    assert all(answer.error and not answer.is_empty and answer.cost_usd == 0 for answer in answers)
    assert sum(answer.lost_usd for answer in answers) == pytest.approx(answers[0].latency_s)
    assert spend_cap.spent_usd == pytest.approx(answers[0].latency_s)
