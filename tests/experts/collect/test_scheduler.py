"""Asking continues if some queries cannot be answered, and stops if none can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from experts.collect.scheduler import GIVE_UP_AFTER, GIVE_UP_AT_FIRST, ask_all, make_queue
from experts.pool import load_pool, make_experts
from experts.spending import SpendCap
from experts.types import EMPTY, Answer, Query

POOL = Path(__file__).parents[3] / "experts" / "tiny" / "pool.yaml"


def test_queries_that_are_too_long_do_not_keep_the_others_from_being_asked():
    queries = [Query(f"long-{i}", "9" * 3000) for i in range(40)] + [Query(f"q-{i}", f"{i} + 1 = ?") for i in range(10)]
    (expert,) = make_experts(load_pool(POOL), ["nano"], SpendCap())
    queue = make_queue(expert, queries, 8, remote=False)
    ask_all([queue], show_progress=False)
    assert (queue.done, queue.failed, queue.given_up) == (10, 40, False)


@dataclass
class Failing:
    """An expert whose calls fail where `fails` says so, with an error such as that of a server that is down."""

    fails: Callable[[Query], bool] = lambda query: True
    error: str = "APIConnectionError: Connection error."
    name: str = "failing"
    asked: list[str] = field(default_factory=list)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        self.asked += [query.query_id for query in queries]
        return [Answer("", 0, 0, 0.0, 0.0, self.error) if self.fails(q) else ANSWER for q in queries]


ANSWER = Answer("x", 1, 1, 0.0, 0.0)
QUERIES = [Query(f"q{i}", "?" * (i + 1)) for i in range(200)]
ERRORS = [
    "APIConnectionError: Connection error.",
    *(f"APIStatusError: Error code: {status}" for status in (400, 401, 403, 404, 405, 413, 422, 429, 500, 503)),
    f"{EMPTY} (finish_reason length)",
]


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("remote", [False, True])
def test_an_expert_that_never_answers_is_given_up_after_a_few_calls(error: str, batch_size: int, remote: bool):
    expert = Failing(error=error)
    queue = make_queue(expert, QUERIES, batch_size, remote)
    ask_all([queue], show_progress=False)
    assert queue.given_up and GIVE_UP_AT_FIRST <= len(expert.asked) < GIVE_UP_AT_FIRST + 2 * min(batch_size, 8)
    assert queue.error == error


@pytest.mark.parametrize("error", ["Error code: 400", "Error code: 413", "Error code: 422", f"{EMPTY} (filtered)"])
@pytest.mark.parametrize("remote", [False, True])
def test_queries_that_fail_by_themselves_do_no_harm_to_the_others(error: str, remote: bool):
    expert = Failing(lambda query: len(query.text) > 20, error)
    queue = make_queue(expert, QUERIES, 8, remote)
    ask_all([queue], show_progress=False)
    assert (queue.done, queue.failed, queue.given_up) == (20, 180, False)


@pytest.mark.parametrize("remote", [False, True])
def test_an_expert_whose_server_goes_down_is_given_up_later(remote: bool):
    expert = Failing()
    expert.fails = lambda query: len(expert.asked) > 50
    queue = make_queue(expert, QUERIES, 8, remote)
    ask_all([queue], show_progress=False)
    assert queue.given_up and queue.done > 40 and GIVE_UP_AFTER <= queue.failed < GIVE_UP_AFTER + 16


def test_what_failed_before_is_asked_last_and_keeps_nothing_from_being_asked():
    expert = Failing(lambda query: len(query.text) > 8, "Error code: 400")
    failed = {query.query_id for query in QUERIES if expert.fails(query)}
    queue = make_queue(expert, QUERIES, 4, False, lambda query: query.query_id in failed)
    ask_all([queue], show_progress=False)
    assert set(expert.asked[:8]) == {f"q{i}" for i in range(8)} and queue.done == 8


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 50])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
@pytest.mark.parametrize("remote", [False, True])
def test_every_query_is_asked_once(n: int, batch_size: int, remote: bool):
    expert = Failing(lambda query: False)
    queue = make_queue(expert, QUERIES[:n], batch_size, remote)
    ask_all([queue], show_progress=False)
    assert sorted(expert.asked) == sorted(query.query_id for query in QUERIES[:n]) and queue.done == n
    assert n == 0 or "q0" in expert.asked[:batch_size]  # the shortest is among the first
