"""Estimates the cost of a collection before anything is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experts.collect.store import missing_queries, parts_directory, read_parts, successes
from experts.pool import keys_for
from experts.specs import ExpertSpec, Pool
from experts.spending import CHARS_PER_TOKEN
from experts.types import Query


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of asking one expert all queries without a stored answer."""

    expert: str
    stored: int
    to_ask: int
    prompt_tokens: int  # estimated from the prompts' lengths
    usd: float  # for these prompt tokens and answers of max_tokens
    worst_usd: float  # if every byte of a prompt is a token and every retry is billed, as the spend cap reserves


def estimate(pool: Pool, queries: Sequence[Query], out: Path, experts: Sequence[str] | None = None) -> list[Estimate]:
    """The number of calls that `collect` would make and their cost, without asking or writing anything."""
    found = set(successes(read_parts(parts_directory(out))))
    return [_estimate(spec, queries, found) for spec in pool.select(experts)]


def _estimate(spec: ExpertSpec, queries: Sequence[Query], found: set[str]) -> Estimate:
    missing = missing_queries(keys_for(spec), queries, found)
    tokens = [math.ceil(spec.most_prompt_tokens(query) / CHARS_PER_TOKEN) for query in missing]
    return Estimate(
        expert=spec.name,
        stored=len(queries) - len(missing),
        to_ask=len(missing),
        prompt_tokens=sum(tokens),
        usd=sum(spec.price.worst_usd(n, spec.max_tokens) for n in tokens),
        worst_usd=sum(spec.worst_usd(query) for query in missing) * spec.attempts,
    )
