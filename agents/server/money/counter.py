"""The arithmetic of one limit: what is spent, reserved and left in the period, and how many queries share it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agents.server.money.periods import period_end, period_start
from agents.server.money.types import Budget, Period, Scope

TOTAL_HORIZON_S = 30 * 86400.0  # a limit that never refills is paced as if it had to last for another month
LEAST_OBSERVED_S = 3600.0  # a rate is not extrapolated from less: the first two requests may come within a second


@dataclass
class Counter:
    """A row of the table of counters. Reservations outlive the end of a period; a cost counts when it is settled."""

    counter_id: int
    scope: Scope
    name: str
    parent_id: int | None
    """of a key: its team, or the server; of a team: the server"""
    limit_micro: int | None
    per: Period
    extra_micro: int
    """topped up in this period"""
    period_start: int
    spent_micro: int
    reserved_micro: int
    queries: int
    """begun in this period"""
    queries_before: int
    """in the period before"""
    created_at: float

    def roll(self, now: float) -> None:
        """Begins the period that contains `now`, if it is a later one."""
        start = period_start(self.per, now)
        if start <= self.period_start:
            return
        self.queries_before = self.queries if period_end(self.per, self.period_start) == start else 0
        self.period_start, self.spent_micro, self.extra_micro, self.queries = start, 0, 0, 0

    @property
    def title(self) -> str:
        return self.scope if self.scope == "server" else f"{self.scope} {self.name}"

    @property
    def whole_micro(self) -> int | None:
        """The limit of this period, top-ups included; None: no limit."""
        return None if self.limit_micro is None else self.limit_micro + self.extra_micro

    @property
    def left_micro(self) -> int | None:
        """What is neither spent nor reserved; never negative, though a call may have cost more than its worst case."""
        unspent_micro = self.unspent_micro
        return None if unspent_micro is None else max(unspent_micro - self.reserved_micro, 0)

    @property
    def unspent_micro(self) -> int | None:
        """What is not spent, reserved or not; never negative."""
        return None if self.whole_micro is None else max(self.whole_micro - self.spent_micro, 0)

    @property
    def refills_at(self) -> int | None:
        return period_end(self.per, self.period_start)

    def queries_expected(self, now: float) -> int:
        """Queries until the period ends, at the rate of this period and the one before; at least 1."""
        since = self.created_at
        if self.per != "total":
            before = period_start(self.per, self.period_start - 1)
            since = max(since, before if self.queries_before else self.period_start)
        rate = (self.queries_before + self.queries) / max(now - since, LEAST_OBSERVED_S)
        ahead = TOTAL_HORIZON_S if self.refills_at is None else self.refills_at - now
        return max(1, math.ceil(rate * ahead))


def budget_of(counters: list[Counter], now: float) -> Budget:
    """What is left of the counters that a key spends from, to be spent at the pace of the one that allows the least."""
    limited = [(counter.left_micro, counter) for counter in counters if counter.left_micro is not None]
    if not limited:
        return Budget(None, None, None, counters[0].queries_expected(now))
    left, binding = min(limited, key=lambda pair: pair[0])
    queries = float(binding.queries_expected(now))
    if left > 0:
        for others_left, counter in limited:  # at a team's pace, the key's money lasts for fewer or more queries
            expected = counter.queries_expected(now) * left / others_left
            if expected > queries:
                queries, binding = expected, counter
    unspent = min(counter.unspent_micro for _, counter in limited if counter.unspent_micro is not None)
    return Budget(left, unspent, binding.refills_at, max(1, math.ceil(queries)))
