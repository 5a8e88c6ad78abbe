"""Models of this process asked live: the same texts as in the table, requests that wait in one batch, conversations."""

import asyncio
import threading
from pathlib import Path

import pytest

import experts.tiny
from experts.backends.local import make_prompt
from experts.live import UpstreamError, make_live_experts
from experts.live.local import Batches, LiveLocal
from experts.pool import load_pool, make_experts
from experts.specs import HuggingFaceSpec
from experts.spending import SpendCap
from experts.tiny.tasks import generate
from experts.types import Answer, Conversation, Query
from leeroo_env.errors import InputError
from tests.experts.live.upstream import request
from tests.experts.tiny_llama import CHAT_TEMPLATE, make_tiny_llama

POOL = load_pool(Path(experts.tiny.__file__).parent / "pool.yaml")
QUESTIONS = [task.text for task in generate(20, seed=5)]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.fixture(scope="module")
def nano():
    return make_live_experts(POOL, ["nano"])[0]


def test_greedy_texts_are_those_of_the_collector(nano):
    answers = make_experts(POOL, ["nano"], SpendCap())[0].answer([Query("q", text) for text in QUESTIONS])

    async def ask():
        return await asyncio.gather(*(nano.complete(request(text, max_tokens=100), 30) for text in QUESTIONS))

    for answer, whole in zip(answers, run(ask()), strict=True):
        assert (whole.text, whole.cost_usd) == (answer.text, answer.cost_usd) and whole.text
        assert whole.usage.prompt_tokens == answer.prompt_tokens
        assert whole.logprob == pytest.approx(answer.logprob, abs=1e-4) and whole.body["model"] == "nano"
        assert whole.body["choices"][0]["message"]["content"] == whole.text
        assert whole.cost_usd <= nano.worst_usd(request(QUESTIONS[0] + " " * 60))


def test_a_stream_is_one_chunk_and_its_completion(nano):
    async def ask():
        stream = nano.stream(request("What is 2 + 3?"), 30, 30)
        return [chunk.data async for chunk in stream], await stream.finish()

    (chunk,), whole = run(ask())
    assert chunk["object"] == "chat.completion.chunk" and chunk["choices"][0]["delta"]["content"] == whole.text
    assert chunk["choices"][0]["finish_reason"] == whole.finish_reason == "stop" and "usage" not in chunk


def test_settings_of_a_request_win(nano):
    async def ask(**settings):
        return await nano.complete(request("What is 2 + 3?", **settings), 30)

    whole = run(ask())
    assert run(ask(max_tokens=1)).finish_reason == "length"
    assert run(ask(stop=whole.text[-1])).text == whole.text[:-1] or len(whole.text) == 1
    assert run(ask(temperature=5.0, seed=1)).text != run(ask(temperature=5.0, seed=2)).text
    for wrong in (
        {"temperature": -1},
        {"top_p": "high"},
        {"tools": [{}]},
        {"response_format": {"type": "json_object"}},
    ):
        with pytest.raises(UpstreamError) as error:
            run(ask(**wrong))
        assert (error.value.kind, error.value.may_be_billed) == ("bad request", False)


def test_a_model_that_cannot_be_loaded_is_said_to_be_so_before_the_first_call(nano, tmp_path):
    run(nano.load())
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pool.yaml").write_text(
        "experts: [{name: x, backend: huggingface, model: '.', usd_per_mtok_in: 1, usd_per_mtok_out: 1}]"
    )
    broken = make_live_experts(load_pool(tmp_path / "pool.yaml"), None)[0]
    with pytest.raises(InputError, match="cannot be loaded"):
        run(broken.load())
    with pytest.raises(UpstreamError) as error:
        run(broken.complete(request("x"), 30))
    assert (error.value.kind, error.value.may_be_billed) == ("server", False)


def test_too_long_a_prompt_is_the_requests_fault(nano):
    with pytest.raises(UpstreamError) as error:
        run(nano.complete(request("word " * 300), 30))
    assert (error.value.kind, error.value.cost_usd) == ("bad request", 0.0)


class SlowExpert:
    """Records its batches; an answer is its question; "bad" fails the whole batch."""

    def __init__(self):
        self.name = "slow"
        self.batches: list[list[str]] = []
        self.may_go_on = threading.Event()

    def answer(self, queries, limits_usd=None):
        self.batches.append([query.text for query in queries])
        self.may_go_on.wait(5)
        if any("bad" in query.text for query in queries):
            raise RuntimeError("refused by the template")
        return [Answer(query.text, 1, 1, 1e-6, 0.1, finish_reason="stop") for query in queries]


def slow(**fields):
    given = {"name": "slow", "backend": "huggingface", "model": "m", "usd_per_mtok_in": 1.0, "usd_per_mtok_out": 1.0}
    expert = SlowExpert()
    return expert, LiveLocal(expert, HuggingFaceSpec.model_validate(given | fields), Batches())


def test_what_waits_is_one_batch():
    expert, live = slow(batch_size=4)

    async def ask():
        first = asyncio.create_task(live.complete(request("0"), 30))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(live.complete(request(str(i), seed=int(i == 3)), 30)) for i in range(1, 8)]
        await asyncio.sleep(0.05)
        expert.may_go_on.set()
        return await asyncio.gather(first, *others)

    assert [whole.text for whole in run(ask())] == [str(i) for i in range(8)]
    assert expert.batches == [["0"], ["1", "2", "4", "5"], ["3"], ["6", "7"]]


def test_one_that_fails_does_not_fail_the_others():
    expert, live = slow()

    async def ask():
        first = asyncio.create_task(live.complete(request("0"), 30))
        await asyncio.sleep(0.05)
        tasks = [asyncio.create_task(live.complete(request(text), 30)) for text in ("a", "bad", "c")]
        await asyncio.sleep(0.05)
        expert.may_go_on.set()
        return await asyncio.gather(first, *tasks, return_exceptions=True)

    _, a, bad, c = run(ask())
    assert (a.text, c.text, bad.kind) == ("a", "c", "server") and "template" in bad.message


def test_who_stops_waiting_before_its_turn_is_not_asked():
    expert, live = slow()

    async def ask():
        first = asyncio.create_task(live.complete(request("0"), 0.3))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(live.complete(request("1"), 0.1))
        third = asyncio.create_task(live.complete(request("2"), 30))
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        expert.may_go_on.set()
        return [*outcomes, await third]

    first, second, third = run(ask())
    assert (first.kind, first.may_be_billed, second.kind, second.may_be_billed) == ("timeout", True, "timeout", False)
    assert first.cost_usd == live.worst_usd(request("0")) and second.cost_usd == 0 and third.text == "2"
    assert expert.batches == [["0"], ["2"]]


@pytest.mark.parametrize(
    "template", [None, CHAT_TEMPLATE, "{{ messages[0]['content'] }}|{{ messages[-1]['content'] }}"]
)
def test_conversations(tmp_path, template):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_tiny_llama(tmp_path, chat_template=template))
    given = {"name": "x", "backend": "huggingface", "model": "m", "usd_per_mtok_in": 1.0, "usd_per_mtok_out": 1.0}
    spec = HuggingFaceSpec.model_validate(given | {"system": "Sys", "prompt": "Q {text}"})

    def prompt(*turns):
        return tokenizer.decode(make_prompt(tokenizer, spec, Conversation("q", "", turns=turns)).ids)

    alone = tokenizer.decode(make_prompt(tokenizer, spec, Query("q", "hi")).ids)
    assert prompt(("system", "Sys"), ("user", "Q hi")) == alone
    several = prompt(("system", "Sys"), ("user", "a"), ("assistant", "b"), ("user", "Q c"))
    if template is None:
        assert (alone, several) == ("Sys\n\nQ hi", "Sys\n\nUser: a\n\nAssistant: b\n\nUser: Q c\n\nAssistant:")
    elif template == CHAT_TEMPLATE:
        assert several == "[system]Sys[user]a[assistant]b[user]Q c[a]"


def test_variants_share_batches_and_a_whole_pool_is_made(tmp_path):
    weights = Path(experts.tiny.__file__).parent / "weights" / "nano"
    (tmp_path / "pool.yaml").write_text(
        f"""experts:
  - name: a
    backend: huggingface
    model: {weights}
    prompt: "{{text}}\\n"
    usd_per_mtok_in: 1
    usd_per_mtok_out: 1
    max_tokens: 16
    chat: false
    variants: {{short: {{max_tokens: 1}}}}
  - {{name: b, backend: openai, model: m, base_url: "http://localhost:1/v1", api_key_env: null, usd_per_second: 1,
     variants: {{v: {{max_tokens: 5}}}}}}
"""
    )
    made = make_live_experts(load_pool(tmp_path / "pool.yaml"), None)
    assert [expert.name for expert in made] == ["a", "a@short", "b", "b@v"]
    assert made[0]._batches is made[1]._batches and made[2]._slots is made[3]._slots
    assert made[2].spec.max_tokens == 1024 and made[3].spec.max_tokens == 5
    whole = run(made[1].complete(request("What is 2 + 3?"), 30))
    assert whole.finish_reason == "length" and whole.usage.completion_tokens == 1
