"""Asking continues if some queries cannot be answered, and stops if none can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experts.collect.scheduler import GIVE_UP_AFTER, ask_all, make_queue
from experts.pool import load_pool, make_experts
from experts.spending import SpendCap
from experts.types import Answer, Query

POOL = Path(__file__).parents[3] / "experts" / "tiny" / "pool.yaml"


def test_queries_that_are_too_long_do_not_keep_the_others_from_being_asked():
    queries = [Query(f"long-{i}", "9" * 3000) for i in range(40)] + [Query(f"q-{i}", f"{i} + 1 = ?") for i in range(10)]
    (expert,) = make_experts(load_pool(POOL), ["nano"], SpendCap())
    queue = make_queue(expert, queries, 8, remote=False)
    ask_all([queue], show_progress=False)
    assert (queue.done, queue.failed, queue.given_up) == (10, 40, False)


@dataclass
class Broken:
    """Every call fails as a server that is down makes it fail."""

    name: str = "broken"
    asked: int = 0

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        self.asked += len(queries)
        return [Answer("", 0, 0, 0.0, 0.0, error="APIConnectionError: Connection error.") for _ in queries]


def test_an_expert_that_never_answers_is_given_up():
    expert = Broken()
    queue = make_queue(expert, [Query(f"q{i}", "?") for i in range(500)], 8, remote=False)
    ask_all([queue], show_progress=False)
    assert queue.given_up and expert.asked == GIVE_UP_AFTER
