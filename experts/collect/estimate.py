"""Estimates the cost of a collection: from the cost of a few real calls, and from the most that calls can cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from experts.collect.scheduler import ExpertQueue, ask_all, queue_for, spread
from experts.collect.store import StoredExpert, missing_queries, open_store, parts_directory, read_parts, successes
from experts.pool import keys_for, make_experts
from experts.specs import ExpertSpec, Pool
from experts.spending import CHARS_PER_TOKEN, SpendCap
from experts.types import Answer, Query


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of asking one expert all queries without a stored answer.

    Attributes:
        stored: queries with an answer.
        to_ask: queries without.
        usd: `to_ask` times the mean bill of the stored answers; without any, for answers of max_tokens.
        error_usd: half of a 95 % interval around that; None with fewer than two stored answers.
        worst_usd: if every byte of a prompt is a token and every retry is billed.
        measured: whether `usd` comes from stored answers.
    """

    expert: str
    stored: int
    to_ask: int
    usd: float
    error_usd: float | None
    worst_usd: float
    measured: bool


def probe(
    pool: Pool,
    queries: Sequence[Query],
    out: Path,
    experts: Sequence[str] | None = None,
    *,
    calls: int,
    max_usd: float | None = None,
) -> list[ExpertQueue]:
    """Asks every expert a few queries, from the shortest to the longest, and keeps the answers for `collect`.

    Args:
        calls: so many answers of each expert are wanted, those that are stored already included; as long as there
            is anything to ask, one call at least is made, to see that the expert can be asked.
        max_usd: the most that these calls may cost.
    """
    specs, spend_cap = pool.select(experts), SpendCap(max_usd)
    asked = make_experts(pool, [spec.name for spec in specs], spend_cap)
    with open_store(parts_directory(out)) as store:
        queues = []
        for expert, spec in zip(asked, specs, strict=True):
            key = keys_for(spec)
            stored = StoredExpert(expert, key, store)
            missing = sorted(stored.missing(queries), key=lambda query: len(query.text))
            fresh = [query for query in missing if stored.failed(query) is None] or missing
            wanted = max(1, calls - (len({key(query) for query in queries}) - len(missing)))
            queues.append(queue_for(stored, spec, [fresh[i] for i in spread(len(fresh), wanted)]))
        ask_all(queues, show_progress=False)
    return queues


def estimate(pool: Pool, queries: Sequence[Query], out: Path, experts: Sequence[str] | None = None) -> list[Estimate]:
    """The number of calls that `collect` would make and their cost, without asking or writing anything."""
    found = successes(read_parts(parts_directory(out)))
    return [_estimate(spec, queries, found) for spec in pool.select(experts)]


def _estimate(spec: ExpertSpec, queries: Sequence[Query], found: dict[str, Answer]) -> Estimate:
    key = keys_for(spec)
    missing = missing_queries(key, queries, found)
    bills = np.array([found[k].billed_usd for query in queries if (k := key(query)) in found])
    worst_usd = sum(spec.worst_usd(query) for query in missing) * spec.attempts
    if len(bills):
        usd = len(missing) * float(bills.mean())
    else:
        tokens = [math.ceil(spec.most_prompt_tokens(query) / CHARS_PER_TOKEN) for query in missing]
        usd = sum(spec.price.worst_usd(n, spec.max_tokens) for n in tokens)
    return Estimate(
        expert=spec.name,
        stored=len(bills),
        to_ask=len(missing),
        usd=usd,
        error_usd=_error_usd(bills, len(missing)),
        worst_usd=worst_usd,
        measured=bool(len(bills)),
    )


def _error_usd(bills: np.ndarray, to_ask: int) -> float | None:
    """Half of the 95 % prediction interval (Student's t) of the sum of `to_ask` more bills like these [n]."""
    n = len(bills)
    if n < 2 or not to_ask:
        return None if to_ask else 0.0
    return float(stdtrit(n - 1, 0.975) * bills.std(ddof=1) * to_ask * math.sqrt(1 / n + 1 / to_ask))
