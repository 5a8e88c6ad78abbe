"""Live answering with servers that fail: the next expert is asked, failing ones are left alone, the budget holds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from agents import Orchestrator
from agents.routers.function import from_function
from agents.serving.breaker import CircuitBreaker
from agents.serving.reply import Reply
from experts.backends.openai import OpenAIExpert
from experts.specs import OpenAISpec
from experts.spending import SpendCap
from experts.types import Answer, Expert, Query
from tests.agents.serving.orchestrators import NAMES, SecondOpinion, orchestrator_of, rated_orchestrator, rated_table
from tests.experts.raw_server import RawServer, completion, raw_server

USD_IN, USD_OUT, MAX_TOKENS = 1000.0, 2000.0, 5  # dollars per million tokens
WORST_USD = (len("question 0") + 256) * USD_IN / 1e6 + MAX_TOKENS * USD_OUT / 1e6
DOWN = "http://127.0.0.1:{}/v1"


@pytest.fixture
def servers() -> Iterator[dict[str, RawServer]]:
    """A server for each expert; all answer 7."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(raw_server()) for name in NAMES}
        for server in servers.values():
            server.react = lambda prompt, time: (200, completion("7"))
        yield servers


def expert(name: str, url: str, **fields: Any) -> OpenAIExpert:
    spec: dict[str, Any] = {"name": name, "backend": "openai", "model": name, "base_url": url, "api_key_env": None}
    spec |= {"usd_per_mtok_in": USD_IN, "usd_per_mtok_out": USD_OUT, "max_tokens": MAX_TOKENS, "max_retries": 0}
    return OpenAIExpert(OpenAISpec.model_validate(spec | fields), SpendCap())


def served(servers: dict[str, RawServer], **fields: Any) -> dict[str, Expert]:
    return {name: expert(name, server.url, **fields) for name, server in servers.items()}


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(
    orchestrator: Orchestrator, experts: dict[str, Expert], usd: float = 100.0, n: int = 1, **options
) -> list[Reply]:
    queries = [f"question {i}" for i in range(n)]
    return orchestrator.answer(queries, experts, usd, embeddings=np.zeros((n, 4)), compare="number", **options)


def replies_with(content: str) -> Callable:
    return lambda prompt, time: (200, completion(content))


def fails(status: int) -> Callable:
    return lambda prompt, time: (status, {"error": {"message": f"refused with {status}"}})


# ---------------------------------------------------------------------------------------------------------------------
# The next best expert


def test_a_server_that_is_down_costs_little_time(rated: Orchestrator, servers: dict[str, RawServer]):
    experts = served(servers, max_retries=5) | {"gamma": expert("gamma", DOWN.format(unused_port()), max_retries=5)}
    started = time.perf_counter()
    (reply,) = ask(rated, experts)
    assert time.perf_counter() - started < 5, "it is not tried again and again while others are there"
    assert (reply.text, reply.expert, reply.stop_reason) == ("7", "beta", "max calls"), "beta is the next best"
    assert [(call.expert, call.error is None) for call in reply.calls] == [("gamma", False), ("beta", True)]
    assert "onnect" in (reply.calls[0].error or "") and reply.calls[0].billed_usd == 0
    started = time.perf_counter()
    replies = ask(rated, experts, n=3)
    assert time.perf_counter() - started < 3
    assert [[call.expert for call in reply.calls] for reply in replies] == [["beta"]] * 3, "gamma is left alone"


def test_a_model_that_is_down_is_not_tried_as_another_variant(servers: dict[str, RawServer]):
    names = ["beta", "gamma@short", "gamma"]
    orchestrator = orchestrator_of(rated_table(names), planned=False)
    url = DOWN.format(unused_port())
    experts: dict[str, Expert] = {name: expert(name, url) for name in names}
    experts["beta"] = expert("beta", servers["beta"].url)
    (reply,) = ask(orchestrator, experts)
    assert [(call.expert, call.error is None) for call in reply.calls] == [("gamma", False), ("beta", True)]


@pytest.mark.parametrize("status", [408, 500, 502, 503, 524])
def test_a_failing_server_is_asked_twice_at_most(rated: Orchestrator, servers: dict[str, RawServer], status: int):
    servers["gamma"].react = fails(status)
    (reply,) = ask(rated, served(servers, max_retries=5))
    assert (reply.text, reply.expert, len(servers["gamma"].prompts)) == ("7", "beta", 2)
    may_be_billed = 0 if status == 503 else 2
    assert reply.calls[0].billed_usd == pytest.approx(may_be_billed * WORST_USD, rel=0.01)


def test_a_server_that_is_busy_is_asked_again(rated: Orchestrator, servers: dict[str, RawServer]):
    servers["gamma"].react = lambda prompt, time: fails(429)(prompt, time) if time < 4 else (200, completion("7"))
    (reply,) = ask(rated, served(servers, max_retries=5))
    assert (reply.text, reply.expert, len(reply.calls)) == ("7", "gamma", 1)


def test_a_server_that_takes_too_long_is_asked_once(rated: Orchestrator, servers: dict[str, RawServer]):
    def slow(prompt: str, number: int) -> tuple:
        time.sleep(1)
        return 200, completion("7")

    servers["gamma"].react = slow
    impatient = expert("gamma", servers["gamma"].url, max_retries=5, timeout_s=0.3)
    (reply,) = ask(rated, served(servers) | {"gamma": impatient})
    assert (reply.expert, len(servers["gamma"].prompts)) == ("beta", 1)
    assert reply.calls[0].billed_usd == pytest.approx(WORST_USD, rel=0.01), "it may have been billed"


def test_a_server_that_hangs_up_is_asked_twice(rated: Orchestrator, servers: dict[str, RawServer]):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asked: list[int] = []

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.recv(10)
                asked.append(1)
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        url = DOWN.format(listener.getsockname()[1])
        (reply,) = ask(rated, served(servers) | {"gamma": expert("gamma", url, max_retries=5)})
        listener.shutdown(socket.SHUT_RDWR)
    assert (reply.expert, len(asked)) == ("beta", 2)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 429, 500, 502, 503, 529])
def test_any_refusal_is_taken_to_the_next_expert(rated: Orchestrator, servers: dict[str, RawServer], status: int):
    servers["gamma"].react = fails(status)
    replies = ask(rated, served(servers), n=2)
    assert [(reply.text, reply.expert, reply.stop_reason) for reply in replies] == [("7", "beta", "max calls")] * 2
    assert all(str(status) in (reply.calls[0].error or "") for reply in replies)


@pytest.mark.parametrize(
    "body",
    [
        completion(""),
        completion(None, finish_reason="content_filter"),
        completion("<think>what could it be", finish_reason="length"),
        completion("<think>it is 9</think>"),
        {"choices": []},
        {"error": {"message": "overloaded", "code": 529}},
        b"<html>busy</html>",
    ],
)
def test_a_reply_without_an_answer_is_taken_to_the_next_expert(rated: Orchestrator, servers: dict, body: Any):
    servers["gamma"].react = lambda prompt, time: (200, body)
    (reply,) = ask(rated, served(servers))
    assert (reply.text, reply.expert, len(reply.calls)) == ("7", "beta", 2)
    assert reply.calls[0].error and reply.calls[0].output == ""


@pytest.mark.parametrize(
    "bad",
    [
        completion("7", {"prompt_tokens": 9}),
        completion("7", {"prompt_tokens": 9, "completion_tokens": None}),
        completion("7", {}),
        completion("7", None),
        completion("7", {"prompt_tokens": -5, "completion_tokens": -7}),
        completion("7", {"prompt_tokens": 1e300, "completion_tokens": 10**40}),
        completion([{"type": "text", "text": "7"}]),
        completion(7),
        completion("7\ud83d"),
    ],
)
def test_an_odd_reply_does_not_touch_its_neighbours(rated: Orchestrator, servers: dict, bad: Any):
    for server in servers.values():
        server.react = lambda prompt, time: (200, bad if "odd" in prompt else completion("7"))
    replies = rated.answer(
        ["3+4=", "odd 3+4=", "5+2="], served(servers), 100.0, embeddings=np.zeros((3, 4)), compare="number"
    )
    assert [reply.answer for reply in replies] == ["7", "7", "7"]
    assert all(0 <= reply.cost_usd <= 3 * WORST_USD for reply in replies)


def test_failed_only_if_all_failed(rated: Orchestrator, servers: dict[str, RawServer]):
    for name, status in zip(NAMES, (401, 404, 500), strict=True):
        servers[name].react = fails(status)
    (reply,) = ask(rated, served(servers))
    assert (reply.text, reply.expert, reply.stop_reason) == (None, None, "failed")
    assert [call.expert for call in reply.calls] == ["gamma", "beta", "alpha"]
    assert all(str(status) in (call.error or "") for call, status in zip(reply.calls, (500, 404, 401), strict=True))
    servers["alpha"].react = lambda prompt, time: (200, completion("7"))
    rated.breaker = CircuitBreaker()
    (reply,) = ask(rated, served(servers))
    assert (reply.text, reply.stop_reason, len(reply.calls)) == ("7", "max calls", 3)


def test_where_all_are_down_one_is_tried_all_the_same(rated: Orchestrator, servers: dict[str, RawServer]):
    for server in servers.values():
        server.react = fails(503)
    experts = served(servers)
    assert ask(rated, experts)[0].stop_reason == "failed"
    (reply,) = ask(rated, experts)
    assert reply.stop_reason == "failed" and len(reply.calls) == 1 and reply.calls[0].error
    for server in servers.values():
        server.react = lambda prompt, time: (200, completion("7"))
    (reply,) = ask(rated, experts)
    assert (reply.text, len(reply.calls)) == ("7", 1), "nobody has to wait for the end of a pause"


def test_a_call_that_brought_nothing_is_none_of_those_that_the_policy_has(rated: Orchestrator, servers, monkeypatch):
    for name, says in zip(NAMES, ("7", "8", "9"), strict=True):
        servers[name].react = replies_with(says)
    router = SecondOpinion((2, 0, 1), 3)
    monkeypatch.setattr(router, "max_calls", 2)
    monkeypatch.setattr(rated, "_router", router)
    servers["gamma"].react = fails(500)
    (reply,) = ask(rated, served(servers))
    assert [(call.expert, call.answer) for call in reply.calls] == [("gamma", None), ("beta", "8"), ("alpha", "7")]
    assert (reply.answer, reply.stop_reason) == ("8", "max calls")


def test_a_policy_with_several_calls_ranks_the_others_itself(servers: dict[str, RawServer]):
    orchestrator = rated_orchestrator(max_calls=2, planned=False)
    (reply,) = ask(orchestrator, served(servers), usd=20.0)
    first = reply.calls[0].expert
    servers[first].react = fails(500)
    (reply,) = ask(orchestrator, served(servers), usd=20.0)
    assert reply.calls[0].expert == first and reply.calls[1].expert != first and reply.text == "7"
    assert reply.stop_reason in ("policy", "max calls")


@pytest.mark.parametrize("max_calls", [1, 2])
def test_a_policy_that_only_chooses_fails_over(servers: dict[str, RawServer], max_calls: int):
    """A function that returns actions: where its choice fails, the most reliable of the others is asked."""
    table = rated_table()
    router = from_function(lambda observations: torch.full((len(observations),), 2), table, max_calls)
    orchestrator = Orchestrator.of(router, table)
    servers["gamma"].react = fails(500)
    (reply,) = ask(orchestrator, served(servers))
    assert reply.calls[0].expert == "gamma" and reply.text == "7" and len(reply.calls) == max_calls + 1
    (reply,) = ask(orchestrator, served(servers))
    assert "gamma" not in {call.expert for call in reply.calls} and reply.text == "7"


@pytest.mark.parametrize("retries", [0, 5])
def test_money_that_does_not_cover_the_next_expert(rated: Orchestrator, servers: dict[str, RawServer], retries: int):
    servers["gamma"].react = fails(500)  # may be billed
    (reply,) = ask(rated, served(servers, max_retries=retries), usd=1.5 * WORST_USD)
    assert (reply.text, reply.stop_reason, len(reply.calls)) == (None, "failed", 1)
    assert len(servers["gamma"].prompts) == 1, "nor a second attempt"
    (reply,) = ask(rated, served(servers), usd=0.5 * WORST_USD)
    assert (reply.text, reply.stop_reason, reply.calls) == (None, "money", ())


# ---------------------------------------------------------------------------------------------------------------------
# Answers that were cut off


def test_a_complete_answer_goes_before_one_that_was_cut_off(rated: Orchestrator, servers: dict, monkeypatch):
    monkeypatch.setattr(rated, "_router", SecondOpinion((0, 1, 2), 3))
    servers["alpha"].react = lambda prompt, time: (200, completion("7, since", finish_reason="length"))
    (reply,) = ask(rated, served(servers))
    assert (reply.text, reply.expert, reply.supporters) == ("7", "beta", ["alpha", "beta"]), "its vote counts"
    assert [call.finish_reason for call in reply.calls] == ["length", "stop"]


def test_a_cut_answer_is_better_than_a_worse_one_and_than_none(rated: Orchestrator, servers: dict, monkeypatch):
    monkeypatch.setattr(rated, "_router", SecondOpinion((2, 0, 1), 3))
    servers["gamma"].react = lambda prompt, time: (200, completion("7, since", finish_reason="length"))
    servers["alpha"].react = servers["beta"].react = lambda prompt, time: (200, completion("no idea"))
    (reply,) = ask(rated, served(servers))
    assert (reply.text, reply.expert) == ("7, since", "gamma"), "it has more support"
    servers["gamma"].react = lambda prompt, time: (200, completion("well, let me", finish_reason="max_tokens"))
    (reply,) = ask(rated, served(servers))
    assert (reply.text, reply.expert) == ("no idea", "beta"), "none has any support"
    servers["alpha"].react = servers["beta"].react = fails(500)
    (reply,) = ask(rated, served(servers))
    assert (reply.text, reply.expert) == ("well, let me", "gamma")


# ---------------------------------------------------------------------------------------------------------------------
# The budget, by the servers' own bills


class Bill:
    """What servers charge, whatever they report."""

    def __init__(self) -> None:
        self.usd = 0.0
        self._lock = threading.Lock()

    def charging(self, react: Callable) -> Callable:
        def charged(prompt: str, time: int) -> tuple:
            with self._lock:
                self.usd += len(prompt.split()) * USD_IN / 1e6 + MAX_TOKENS * USD_OUT / 1e6
            return react(prompt, time)

        return charged


@pytest.mark.parametrize(("retries", "at_once"), [(0, 16), (2, 1)])
@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -100_000, "completion_tokens": 5},
        {"prompt_tokens": 2, "completion_tokens": -100_000},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": float("nan"), "completion_tokens": 5},
        {"prompt_tokens": 2, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": -1e9}},
        None,
    ],
)
def test_a_server_that_lies_gets_no_more_than_the_budget(
    rated: Orchestrator, servers: dict[str, RawServer], usage: Any, retries: int, at_once: int
):
    bill = Bill()
    for server in servers.values():
        server.react = bill.charging(lambda prompt, time: (200, completion("1 1 1 1 7", usage)))
    usd = 4 * WORST_USD
    replies = ask(rated, served(servers, max_retries=retries), usd, n=20, at_once=at_once)
    assert 0 < bill.usd <= usd
    assert bill.usd <= sum(reply.billed_usd for reply in replies) <= usd + 1e-9
    assert {reply.stop_reason for reply in replies} <= {"max calls", "money"}


@pytest.mark.parametrize(("retries", "at_once"), [(0, 16), (5, 1)])
@pytest.mark.parametrize("status", [408, 500, 502, 504, 524])
def test_failures_that_are_billed_count(
    rated: Orchestrator, servers: dict[str, RawServer], status: int, retries: int, at_once: int
):
    bill = Bill()
    good, bad = (200, completion("7", {"prompt_tokens": 2, "completion_tokens": 5})), fails(status)("", 0)
    servers["gamma"].react = bill.charging(lambda prompt, time: bad)
    for name in ("alpha", "beta"):
        servers[name].react = bill.charging(lambda prompt, time: bad if time % 2 else good)
    usd = 8 * WORST_USD
    replies = ask(rated, served(servers, max_retries=retries), usd, n=20, at_once=at_once)
    assert 0 < bill.usd <= sum(reply.billed_usd for reply in replies) + 1e-9 <= usd + 1e-6


class Odd:
    """An expert that returns whatever a test wants."""

    def __init__(self, name: str, result: Any):
        self.name, self.result, self.asked = name, result, 0

    def answer(self, queries: Any) -> Any:
        self.asked += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result(queries) if callable(self.result) else self.result


def good(text: Any = "7", **fields: Any) -> Callable:
    numbers = {"prompt_tokens": 1, "completion_tokens": 1, "cost_usd": 0.001, "latency_s": 0.1}
    return lambda queries: [Answer(**{"text": text, **numbers, **fields}) for _ in queries]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (OSError("disk on fire"), "OSError: disk on fire"),
        (None, "TypeError"),
        ([], "0 answers to 1 queries"),
        (lambda queries: good()(queries) * 2, "2 answers to 1 queries"),
        (["7"], "returned str, not Answer"),
        ([None], "returned NoneType, not Answer"),
        (good(7), "text of type int"),
        (good(None), "text of type NoneType"),
        (good(b"7"), "text of type bytes"),
        (good(" \n"), "empty reply"),
        (good("<think>7"), "empty reply"),
        (good(error="down"), "down"),
        (good(error=ValueError("bad")), "bad"),
    ],
)
def test_whatever_an_expert_returns_is_one_failed_call(rated: Orchestrator, result: Any, words: str):
    experts: dict[str, Any] = {name: Odd(name, good()) for name in NAMES} | {"gamma": Odd("gamma", result)}
    (reply,) = ask(rated, experts, allow_unbounded=True)
    assert (reply.text, reply.expert) == ("7", "beta")
    assert words in (reply.calls[0].error or "") and reply.calls[0].cost_usd == 0


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf"), -float("inf"), None, "free", 1j])
@pytest.mark.parametrize("field", ["cost_usd", "lost_usd"])
def test_a_cost_that_is_no_amount_counts_as_the_worst_case(rated: Orchestrator, cost: Any, field: str):
    experts: Any = {name: Odd(name, good(**{field: cost})) for name in NAMES}
    replies = ask(rated, experts, usd=0.03, n=20, allow_unbounded=True)
    mean_usd = dict(zip(NAMES, rated.description.mean_cost_usd, strict=True))
    for reply in replies:
        assert [call.billed_usd for call in reply.calls] == [mean_usd[call.expert] for call in reply.calls]
    assert sum(reply.billed_usd for reply in replies) <= 0.03
    assert replies[-1].stop_reason == "money"


def test_odd_counts_and_times_lose_no_answer(rated: Orchestrator):
    odd = good(latency_s=float("nan"), prompt_tokens=None, completion_tokens=-3)
    (reply,) = ask(rated, {name: Odd(name, odd) for name in NAMES}, allow_unbounded=True)
    assert reply.text == "7" and reply.latency_s == 0
    assert (reply.calls[0].prompt_tokens, reply.calls[0].completion_tokens) == (0, 0)


def test_calls_that_cost_more_than_they_can_are_expected_to_do_so_again(rated: Orchestrator):
    experts: Any = {name: Odd(name, good(cost_usd=0.02)) for name in NAMES}
    replies = ask(rated, experts, usd=0.1, n=20, at_once=1, allow_unbounded=True)
    assert sum(reply.billed_usd for reply in replies) <= 0.1 + 1e-9


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


@pytest.mark.parametrize(
    "compare",
    [
        lambda query, outputs: 1 / 0,
        lambda query, outputs: [],
        lambda query, outputs: [7] * len(outputs),
        lambda query, outputs: None,
    ],
)
def test_a_comparison_that_fails_loses_no_paid_answer(rated: Orchestrator, servers: dict, monkeypatch, compare: Any):
    monkeypatch.setattr(rated, "_router", SecondOpinion((0, 1, 2), 3))
    (reply,) = rated.answer(["q"], served(servers), 100.0, embeddings=np.zeros((1, 4)), compare=compare)
    assert (reply.text, reply.supporters, len(reply.calls)) == ("7", ["alpha", "beta"], 2), "equal texts agree"


def test_a_comparison_that_never_ends_loses_no_paid_answer(rated: Orchestrator, servers: dict, monkeypatch):
    monkeypatch.setattr("agents.serving.answer_match.DEADLINE_S", 0.05)
    ends = threading.Event()

    def compare(query: Query, outputs: Any) -> list[str | None]:
        ends.wait(20)
        return ["never"] * len(outputs)

    (reply,) = rated.answer(["q"], served(servers), 100.0, embeddings=np.zeros((1, 4)), compare=compare)
    ends.set()
    assert (reply.text, reply.answer) == ("7", "7")


def test_reasoning_has_no_vote(rated: Orchestrator, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rated, "_router", SecondOpinion((0, 1, 2), 3))
    thinks = good("<think>surely 8, or is it 8?</think>7")
    experts: dict[str, Any] = {name: Odd(name, thinks if name == "alpha" else good()) for name in NAMES}
    (reply,) = ask(rated, experts, allow_unbounded=True)
    assert (reply.text, reply.supporters) == ("7", ["alpha", "beta"])
    assert reply.calls[0].output == "7"
