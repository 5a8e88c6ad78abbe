"""Defines grades, graders and what they compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from experts.types import Query
from leeroo_env.errors import InputError


@dataclass(frozen=True)
class Grade:
    """The grade of one output.

    Attributes:
        score: in [0, 1].
        answer: the short answer in normal form: equal strings mean agreement. None if the output holds no answer.
        cost_usd: cost of the grading, in dollars; zero except for a model as judge.
        error: why there is no verdict; the score is then 0 and has no meaning.
    """

    score: float
    answer: str | None
    cost_usd: float = 0.0
    error: str | None = None


Grader = Callable[[str, Query], Grade]


def reference_of(query: Query) -> str:
    if query.reference is None or not query.reference.strip():
        raise InputError(f"query {query.query_id!r} has no reference to grade against")
    return query.reference
