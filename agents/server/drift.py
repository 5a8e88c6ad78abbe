"""Tells whether an expert has changed: what it did in the last days against the days before, and against the policy's
estimates, which come from the run's table.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Connection

from agents.server.journal import KEPT_S, decisions
from agents.server.money.schema import ledger
from agents.shifts import (
    LEAST,
    Shift,
    ratio_to_before,
    ratio_to_prediction,
    score_against_before,
    score_against_prediction,
)

RECENT_S = 2 * 86_400.0  # these against the others of the days that decisions are kept
CALLS, DECISIONS = 10_000, 2_000  # the last of a time, which are compared
KNOWN_S = 300.0  # as reading takes time from the requests
UNSURE, SURE = 0.05, 0.001

What = Literal["feedback", "cost", "length", "latency"]
Against = Literal["before", "estimate"]


@dataclass(frozen=True)
class Drift:
    """How one number of an expert differs.

    Attributes:
        expert: whose.
        what: mean feedback; or dollars, tokens or seconds an answer.
        against: what it is compared with: the days before, or what the policy estimated.
        n: values of the last days.
        now: their mean, geometric but for feedback.
        then: the mean that it is compared with.
        shift: the difference; the logarithm of the ratio, but for feedback.
        tests: the number of differences that were tested together.
    """

    expert: str
    what: What
    against: Against
    n: int
    now: float
    then: float
    shift: Shift
    tests: int = 1

    @property
    def change(self) -> float:
        """The difference of feedback, else the ratio less 1."""
        return self.shift.mean if self.what == "feedback" else math.expm1(self.shift.mean)

    @property
    def chance(self) -> float:
        """At most how probable it is that any of the differences tested is this large where nothing has changed."""
        return min(1.0, self.tests * 2 * NormalDist().cdf(-abs(self.shift.z)))

    @property
    def verdict(self) -> Literal["changed", "perhaps", "small", "no sign"]:
        """Small: certainly there, but of no weight."""
        if self.shift.is_sure(self.tests):
            return "changed"
        if self.chance > UNSURE:
            return "no sign"
        return "perhaps" if abs(self.shift.mean) > self.shift.least else "small"


class Watch:
    """Reads how experts drift, once in five minutes at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: list[Drift] = []
        self._until = 0.0

    def read(self, connection: Connection, now: float) -> list[Drift]:
        """As `drifts`; `now` in Unix seconds."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._known = drifts(connection, now)
                self._until = time.monotonic() + KNOWN_S
            return self._known


def drifts(connection: Connection, now: float) -> list[Drift]:
    """All that can be told, what has changed first. An expert with fewer than 20 values is left out.

    Feedback and costs of the last days are compared with the estimates for the same queries, so that these do not
    change when other queries are asked; what is compared with the days before does.
    """
    found = [*_against_before(connection, now), *_against_estimates(connection, now)]
    tested = [Drift(**{**vars(one), "tests": len(found)}) for one in found]
    order = ("changed", "perhaps", "small", "no sign")
    return sorted(tested, key=lambda one: (order.index(one.verdict), -abs(one.shift.z), one.expert))


Values = dict[tuple[str, What], list[float]]  # by expert


def _against_before(connection: Connection, now: float) -> list[Drift]:
    """What the last days differ in from the days before, as far as these and those have enough values."""
    since = now - RECENT_S
    recent, before = (_values(connection, *span) for span in ((since, now), (now - KEPT_S, since)))
    found = []
    for (expert, what), of in recent.items():
        later, earlier = np.array(of), np.array(before.get((expert, what), ()))
        if min(len(later), len(earlier)) >= LEAST:
            test = score_against_before if what == "feedback" else ratio_to_before
            means = _mean(what, later), _mean(what, earlier)
            found.append(Drift(expert, what, "before", len(of), *means, test(later, earlier)))
    return found


def _values(connection: Connection, since: float, until: float) -> Values:
    """What is known of the last answers of a time; no amounts that are 0."""
    values: Values = defaultdict(list)
    row, told = ledger.c, decisions.c
    query = sa.select(row.expert, row.micro_usd, row.output + row.reasoning, row.latency_s)
    query = query.where(row.settled_at >= since, row.settled_at < until, row.outcome == "answered")
    for expert, micro_usd, tokens, seconds in connection.execute(query.order_by(row.settled_at.desc()).limit(CALLS)):
        amounts: dict[What, float] = {"cost": micro_usd / 1e6, "length": tokens, "latency": seconds}
        for what, amount in amounts.items():
            if amount > 0:
                values[expert, what].append(amount)
    rated = sa.select(told.expert, told.feedback).where(told.at >= since, told.at < until, told.feedback.is_not(None))
    for expert, feedback in connection.execute(rated.order_by(told.at.desc()).limit(DECISIONS)):
        values[expert, "feedback"].append(feedback)
    return values


def _against_estimates(connection: Connection, now: float) -> list[Drift]:
    """Feedback and cost of the last decisions against their estimates; the costs of those with one call."""
    pairs: dict[tuple[str, What], list[tuple[float, float]]] = defaultdict(list)
    row = decisions.c
    query = sa.select(row.expert, row.estimates, row.micro_usd, row.calls, row.feedback)
    query = query.where(row.at >= now - RECENT_S, row.status == 200).order_by(row.at.desc()).limit(DECISIONS)
    for expert, estimates, micro_usd, calls, _ in connection.execute(query.where(row.micro_usd > 0)):
        estimate = json.loads(estimates).get(expert)
        if estimate is not None and calls == 1 and estimate[1] > 0:
            pairs[expert, "cost"].append((estimate[1], micro_usd / 1e6))
    for expert, estimates, _, _, feedback in connection.execute(query.where(row.feedback.is_not(None))):
        estimate = json.loads(estimates).get(expert)
        if estimate is not None and estimate[0] is not None:
            pairs[expert, "feedback"].append((estimate[0], feedback))
    found = []
    for (expert, what), of in pairs.items():
        estimated, observed = np.array(of).T
        if len(of) >= LEAST:
            test = score_against_prediction if what == "feedback" else ratio_to_prediction
            means = _mean(what, observed), _mean(what, estimated)
            found.append(Drift(expert, what, "estimate", len(of), *means, test(estimated, observed)))
    return found


def _mean(what: What, values: np.ndarray) -> float:
    return float(values.mean() if what == "feedback" else np.exp(np.log(values).mean()))
