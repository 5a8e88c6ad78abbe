"""Caps what the experts of a run spend together."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from experts.types import Answer

NOT_ASKED = "not asked: the spend cap is reached"
CAP_REACHED = "SpendCapReached"  # how the error of a call begins that the spend cap refused another attempt
NOT_PAID = "not asked: what is left does not pay for the prompt"
WAIT_S = 0.02
CHARS_PER_TOKEN = 4  # of English text, for estimates


class SpendCap:
    """A hard cap on what the experts of a run spend together. Safe to use from several threads.

    The worst cost of a call is reserved before the call and replaced by its actual cost afterwards. Spent and reserved
    dollars together never exceed the cap.
    """

    def __init__(self, max_usd: float | None = None) -> None:
        self.max_usd = float("inf") if max_usd is None else max_usd
        self.spent_usd = 0.0
        self.reserved_usd = 0.0
        self._calls = 0
        self._lock = threading.Lock()

    def try_reserve(self, usd: float) -> Literal["granted", "wait", "refused"]:
        """Reserves dollars; "wait" if calls in flight may release enough, "refused" if they cannot."""
        with self._lock:
            if self.spent_usd + self.reserved_usd + usd <= self.max_usd:
                self.reserved_usd += usd
                self._calls += 1
                return "granted"
            return "wait" if self._calls and self.spent_usd + usd <= self.max_usd else "refused"

    def settle(self, reserved_usd: float, spent_usd: float) -> None:
        """Replaces a granted reservation by the actual cost; one that is no amount counts as the whole reservation."""
        known = math.isfinite(spent_usd) and spent_usd >= 0
        with self._lock:
            self._calls -= 1
            self.reserved_usd = self.reserved_usd - reserved_usd if self._calls else 0.0
            self.spent_usd += spent_usd if known else reserved_usd

    def reserve(self, usd: float) -> bool:
        """Reserves dollars, after waiting for calls in flight if they may release enough. False if refused."""
        while (outcome := self.try_reserve(usd)) == "wait":
            time.sleep(WAIT_S)
        return outcome == "granted"

    def reserve_first(self, usd: Sequence[float]) -> int:
        """Reserves the first of several calls as `reserve` does, and of those after it as many as need no wait; returns
        how many, 0 if the first is refused."""
        if not self.reserve(usd[0]):
            return 0
        n = 1
        while n < len(usd) and self.try_reserve(usd[n]) == "granted":
            n += 1
        return n

    async def reserve_async(self, usd: float) -> bool:
        """`reserve` without blocking the event loop."""
        while (outcome := self.try_reserve(usd)) == "wait":
            await asyncio.sleep(WAIT_S)
        return outcome == "granted"


def not_asked(reason: str = NOT_ASKED) -> Answer:
    """The answer of a call that was not made: the spend cap refused it."""
    return Answer("", 0, 0, 0.0, 0.0, error=reason)


def ask_affordable(
    spend_cap: SpendCap, worst_usd: Sequence[float], ask: Callable[[slice], list[Answer]], batch_size: int
) -> list[Answer]:
    """Asks a local model in batches of at most `batch_size` that the spend cap can pay for.

    Args:
        worst_usd: the most that each call can cost, in dollars.
        ask: answers the calls of a slice, one answer per call.
    """
    answers: list[Answer] = []
    while len(answers) < len(worst_usd):
        start = len(answers)
        end = start + spend_cap.reserve_first(worst_usd[start : start + batch_size])
        if end == start:
            return answers + [not_asked() for _ in worst_usd[start:]]
        batch: list[Answer] = []
        try:
            batch = ask(slice(start, end))
        finally:
            costs = [answer.billed_usd for answer in batch] or [0.0] * (end - start)
            for reserved, cost in zip(worst_usd[start:end], costs, strict=True):
                spend_cap.settle(reserved, cost)
        answers += batch
    return answers
