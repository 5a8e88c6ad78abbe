"""The OpenAI backend against a real server on loopback."""

import itertools
import threading
import time

import pytest

from experts.backends.openai import OpenAIExpert
from experts.specs import OpenAISpec
from experts.spending import NOT_ASKED, NOT_PAID, SpendCap
from experts.types import Query
from leeroo_env.errors import InputError
from tests.conftest import KEY
from tests.experts.openai_server import OpenAIServer, reply_to, tokens
from tests.experts.raw_server import completion, raw_server


def make_spec(**fields) -> OpenAISpec:
    fields = {"name": "one", "model": "m", "usd_per_mtok_in": 1000.0, "usd_per_mtok_out": 2000.0} | fields
    return OpenAISpec.model_validate(
        {"backend": "openai", "base_url_env": "TEST_URL", "api_key_env": "TEST_KEY"} | fields
    )


def queries(n: int) -> list[Query]:
    return [Query(f"q{i}", f"what is {i} and {i}") for i in range(n)]


def test_answers_in_order_with_tokens_cost_and_latency(server):
    server.delay_s = 0.02
    expert = OpenAIExpert(
        make_spec(system="be brief", generation={"temperature": 0.5, "seed": 3, "stop": ["x"]}), SpendCap()
    )
    answers = expert.answer(queries(20))
    assert [a.text for a in answers] == [reply_to(q.text) for q in queries(20)]
    for answer, query in zip(answers, queries(20), strict=True):
        assert (answer.prompt_tokens, answer.completion_tokens) == (tokens(query.text), 5)
        assert answer.cost_usd == pytest.approx(answer.prompt_tokens * 1e-3 + answer.completion_tokens * 2e-3)
        assert 0.02 <= answer.latency_s < 5 and answer.error is None
    body = server.bodies[0]
    assert body["messages"][0] == {"role": "system", "content": "be brief"}
    assert {k: body[k] for k in ("model", "temperature", "seed", "stop", "max_tokens")} == {
        "model": "m", "temperature": 0.5, "seed": 3, "stop": ["x"], "max_tokens": 1024,
    }  # fmt: skip
    assert server.keys == {KEY}


def test_completions_without_chat(server):
    expert = OpenAIExpert(make_spec(chat=False, prompt="Q: {text}\nA:", max_tokens=3), SpendCap())
    answer = expert.answer(queries(1))[0]
    assert server.bodies[0]["prompt"] == "Q: what is 0 and 0\nA:"
    assert answer.completion_tokens == 3 and answer.error is None


@pytest.mark.parametrize("trouble", [429, 500, 503, "hang"])
def test_retries_until_it_works(server, trouble):
    server.behaviour = lambda prompt, time: trouble if time <= 2 else "ok"
    expert = OpenAIExpert(make_spec(timeout_s=0.3, max_retries=3), SpendCap())
    answer = expert.answer(queries(1))[0]
    assert answer.error is None and answer.text == reply_to("what is 0 and 0")
    assert server.requests["what is 0 and 0"] == 3


def test_a_failed_call_is_an_answer_and_the_others_are_not_harmed(server):
    server.behaviour = lambda prompt, time: 500 if " 3 " in prompt else 400 if " 5 " in prompt else "ok"
    answers = OpenAIExpert(make_spec(max_retries=2), SpendCap()).answer(queries(8))
    assert [i for i, a in enumerate(answers) if a.error] == [3, 5]
    assert "500" in answers[3].error and (answers[3].cost_usd, answers[3].text) == (0.0, "")
    assert server.requests["what is 3 and 3"] == 3 and server.requests["what is 5 and 5"] == 1


def test_a_server_that_is_not_there(monkeypatch):
    with OpenAIServer() as gone:
        monkeypatch.setenv("TEST_URL", gone.url)
    monkeypatch.setenv("TEST_KEY", KEY)
    spend_cap = SpendCap(1e6)
    answer = OpenAIExpert(make_spec(max_retries=1, timeout_s=2), spend_cap).answer(queries(1))[0]
    assert "Connection" in answer.error
    assert spend_cap.spent_usd == 0.0  # nothing was sent, nothing can be billed


def test_concurrency_holds_across_threads_and_is_used(server):
    server.delay_s = 0.05
    expert = OpenAIExpert(make_spec(concurrency=4), SpendCap())
    threads = [threading.Thread(target=expert.answer, args=(queries(10),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.requests.total() == 30
    assert server.most_at_once == 4


def test_requests_start_at_even_distances_and_retries_are_requests_too(server):
    server.behaviour = lambda prompt, time: 500 if time == 1 else "ok"
    started_s: list[float] = []
    server.reply = lambda prompt: started_s.append(time.monotonic()) or "fine"
    expert = OpenAIExpert(make_spec(concurrency=8, requests_per_minute=1200), SpendCap())
    began_s = time.monotonic()
    assert all(answer.text == "fine" for answer in expert.answer(queries(4)))
    assert server.requests.total() == 8 and time.monotonic() - began_s > 7 * 0.05
    assert max(b - a for a, b in itertools.pairwise(started_s)) > 0.03


def test_no_usage_is_charged_at_the_worst_case(server, caplog):
    server.behaviour = lambda prompt, time: "no usage"
    expert = OpenAIExpert(make_spec(name="silent", max_tokens=10), SpendCap())
    answer = expert.answer(queries(1))[0]
    assert answer.completion_tokens == 10 and answer.prompt_tokens >= len("what is 0 and 0")
    assert "silent" in caplog.text


def test_a_reply_without_a_choice_fails_and_its_money_is_counted(server):
    server.behaviour = lambda prompt, time: "empty"
    spend_cap = SpendCap()
    answer = OpenAIExpert(make_spec(max_retries=0), spend_cap).answer(queries(1))[0]
    assert answer.error and spend_cap.spent_usd > 0


def test_the_cap_is_never_exceeded_and_nearly_used(server):
    server.delay_s = 0.005
    spec = make_spec(max_tokens=5, max_retries=0, concurrency=6)
    one_call = 5 * 1e-3 + 5 * 2e-3
    worst = (15 + 256) * 1e-3 + 5 * 2e-3
    cap = 20 * one_call + worst
    spend_cap = SpendCap(cap)
    answers = OpenAIExpert(spec, spend_cap).answer(queries(60))
    asked = [a for a in answers if a.error is None]
    assert {a.error for a in answers} == {None, NOT_ASKED}
    assert sum(a.cost_usd for a in asked) == pytest.approx(spend_cap.spent_usd)
    assert cap - worst - one_call < spend_cap.spent_usd <= cap
    assert len(asked) == server.requests.total() >= 20
    assert spend_cap.reserved_usd == 0.0


def test_two_experts_share_one_spend_cap(server):
    spend_cap = SpendCap(0.6)
    pool = [OpenAIExpert(make_spec(name=n, max_tokens=5, max_retries=0, concurrency=3), spend_cap) for n in "ab"]
    results: dict[str, list] = {}
    threads = [threading.Thread(target=lambda e=e: results.update({e.name: e.answer(queries(40))})) for e in pool]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(a.cost_usd for answers in results.values() for a in answers)
    assert 0.2 < total <= 0.6
    assert total == pytest.approx(spend_cap.spent_usd)


def test_timed_out_attempts_count_as_spent(server):
    server.behaviour = lambda prompt, time: "hang" if time == 1 else "ok"
    spend_cap = SpendCap()
    answer = OpenAIExpert(make_spec(timeout_s=0.3, max_retries=1, max_tokens=5), spend_cap).answer(queries(1))[0]
    worst = (15 + 256) * 1e-3 + 5 * 2e-3
    assert answer.error is None and spend_cap.spent_usd == pytest.approx(answer.cost_usd + worst)


def test_price_by_the_second(server):
    server.delay_s = 0.1
    spec = make_spec(usd_per_mtok_in=None, usd_per_mtok_out=None, usd_per_second=2.0)
    answer = OpenAIExpert(spec, SpendCap()).answer(queries(1))[0]
    assert answer.cost_usd == pytest.approx(2.0 * answer.latency_s) and answer.latency_s >= 0.1


def test_the_key_is_nowhere(server, caplog, capfd):
    caplog.set_level("DEBUG")
    server.behaviour = lambda prompt, time: "echo key"
    expert = OpenAIExpert(make_spec(), SpendCap())
    answer = expert.answer(queries(1))[0]
    assert "[redacted]" in answer.error
    output = capfd.readouterr()
    assert KEY not in "".join([answer.error, repr(expert), repr(expert.spec), caplog.text, output.out, output.err])


def test_a_variable_that_is_not_set(server, monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(InputError, match="api_key_env: environment variable TEST_KEY is not set"):
        OpenAIExpert(make_spec(), SpendCap())
    OpenAIExpert(make_spec(api_key_env=None), SpendCap())


@pytest.fixture
def odd(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    with raw_server() as server:
        monkeypatch.setenv("TEST_URL", server.url)
        yield server


ODD = {
    "completion_tokens missing": completion(usage={"prompt_tokens": 10}),
    "counts null": completion(usage={"prompt_tokens": None, "completion_tokens": None}),
    "usage empty": completion(usage={}),
    "usage a list": completion(usage=[1]),
    "no usage": completion(usage=None),
    "content a list of parts": completion([{"type": "text", "text": "ok"}]),
    "content a number": completion(7),
    "half an emoji": completion("\ud83d ok"),
    "absurd counts": completion(usage={"prompt_tokens": 10**20, "completion_tokens": 10**20}),
    "negative counts": completion(usage={"prompt_tokens": -9, "completion_tokens": -9}),
    "no choices": completion() | {"choices": []},
    "a choice without a message": completion() | {"choices": [{}]},
    "HTML": b"<html>log in</html>",
    "nothing": b"",
    "an error": {"error": {"message": "no", "code": 400}},
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD.keys())
def test_one_odd_reply_harms_no_neighbour(odd, body):
    odd.react = lambda prompt, time: (200, body if " 1 " in prompt else completion())
    spend_cap = SpendCap()
    answers = OpenAIExpert(make_spec(max_retries=0), spend_cap).answer(queries(4))
    assert [a.text for i, a in enumerate(answers) if i != 1] == ["ok"] * 3
    assert all(a.cost_usd >= 0 for a in answers) and (answers[1].text != "") == (answers[1].error is None)
    assert spend_cap.reserved_usd == 0 and spend_cap.spent_usd == pytest.approx(sum(a.billed_usd for a in answers))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (completion("", finish_reason="length"), "finish_reason length): 5 tokens were spent; raise max_tokens"),
        (completion("<think>hm", finish_reason="length"), "5 tokens were spent on reasoning; raise max_tokens"),
        (completion(None, finish_reason="content_filter"), "finish_reason content_filter)"),
        (completion(None, refusal="I will not"), "the model refused: I will not"),
        (completion(None, finish_reason="tool_calls", tool_calls=[{}]), "finish_reason tool_calls)"),
        (completion("  ", finish_reason=None), "finish_reason not given)"),
    ],
)
def test_an_empty_reply_is_an_error_that_says_why_and_its_cost_is_lost(odd, body, words):
    odd.react = lambda prompt, time: (200, body)
    answer = OpenAIExpert(make_spec(max_retries=0), SpendCap()).answer(queries(1))[0]
    assert answer.is_empty and words in answer.error and answer.text == ""
    assert (answer.cost_usd, answer.lost_usd) == (0.0, pytest.approx(10 * 1e-3 + 5 * 2e-3))


def test_an_empty_reply_is_asked_for_once_more_if_that_may_help(odd):
    odd.react = lambda prompt, time: (200, completion("" if time == 1 else "ok"))
    answer = OpenAIExpert(make_spec(max_retries=1), SpendCap()).answer(queries(1))[0]
    assert answer.text == "ok" and answer.lost_usd == pytest.approx(answer.cost_usd)
    odd.react = lambda prompt, time: (200, completion("", finish_reason="length"))
    odd.prompts.clear()
    OpenAIExpert(make_spec(max_retries=3), SpendCap()).answer(queries(1))
    assert len(odd.prompts) == 1


def test_a_key_echoed_in_an_answer_is_not_kept(odd):
    odd.react = lambda prompt, time: (200, completion(f"your key is {KEY}", reasoning_content=KEY))
    answer = OpenAIExpert(make_spec(), SpendCap()).answer(queries(1))[0]
    assert answer.text == "your key is [redacted]" and answer.reasoning == "[redacted]"


def test_an_error_is_one_line_without_control_codes(odd):
    odd.react = lambda prompt, time: (400, {"error": {"message": "\x1b[2J\x1b]0;title\x07 a\r\nb \x9b"}})
    answer = OpenAIExpert(make_spec(), SpendCap()).answer(queries(1))[0]
    assert answer.error.isprintable() and "a b" in answer.error


def test_half_a_surrogate_pair_in_a_query_fails_that_query_alone(odd):
    answers = OpenAIExpert(make_spec(), SpendCap()).answer([Query("a", "half \ud83d"), Query("b", "whole")])
    assert answers[1].text == "ok" and isinstance(answers[0].error or answers[0].text, str)


def test_the_mean_log_probability_is_kept_where_it_is_asked_for_and_given(odd):
    body = completion("ok")
    body["choices"][0]["logprobs"] = {"content": [{"token": "o", "logprob": -0.5}, {"token": "k", "logprob": -1.5}]}
    odd.react = lambda prompt, time: (200, body)
    expert = OpenAIExpert(make_spec(logprobs=True), SpendCap())
    assert expert.answer(queries(1))[0].logprob == -1.0
    for broken in (None, [], {"content": None}, {"content": [{"logprob": "x"}]}, {"content": [{}]}, {"content": [7]}):
        body["choices"][0]["logprobs"] = broken
        answer = expert.answer(queries(1))[0]
        assert answer.logprob is None and answer.text == "ok"


def test_calls_are_cut_off_where_their_limits_end(server):
    expert = OpenAIExpert(make_spec(max_tokens=8), SpendCap())
    prompt_usd = (len("what is 0 and 0") + 256) * 1e-3  # at most; a token more costs 2e-3
    limits = [prompt_usd + usd for usd in (0.0019, 0.0021, 0.0101, 1.0)]
    none, one, five, eight = expert.answer(queries(4), limits_usd=limits)
    assert sorted(body["max_tokens"] for body in server.bodies) == [1, 5, 8]
    assert none.error == NOT_PAID and none.billed_usd == 0
    assert (one.completion_tokens, one.finish_reason, one.error) == (1, "budget", None)
    assert one.text == reply_to("what is 1 and 1").split()[0]
    assert [(a.completion_tokens, a.finish_reason) for a in (five, eight)] == [(5, "stop")] * 2
    assert all(a.billed_usd <= usd for a, usd in zip((none, one, five, eight), limits, strict=True))


def test_a_reply_that_ends_at_max_tokens_was_not_cut_off_by_its_limit(server):
    expert = OpenAIExpert(make_spec(max_tokens=2), SpendCap())
    (answer,) = expert.answer(queries(1), limits_usd=[1.0])
    assert (answer.completion_tokens, answer.finish_reason) == (2, "length")


def test_what_a_server_does_not_report_is_assumed_up_to_the_limit(server):
    server.behaviour = lambda prompt, time: "no usage"
    limit_usd = (len("what is 0 and 0") + 256) * 1e-3 + 3 * 2e-3
    (answer,) = OpenAIExpert(make_spec(name="quiet"), SpendCap()).answer(queries(1), limits_usd=[limit_usd])
    assert (answer.completion_tokens, answer.usage) == (3, "assumed")
    assert answer.cost_usd == pytest.approx(limit_usd)
