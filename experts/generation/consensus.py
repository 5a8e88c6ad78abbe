"""References for queries that have none: what several experts agree on, or what a teacher says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experts.grading import NORMAL_FORMS
from experts.types import Answer, Query
from leeroo_env.errors import InputError


@dataclass(frozen=True)
class Consensus:
    """Queries that got a reference.

    Attributes:
        queries: with `reference` set, in normal form.
        rows: [K] int64, where each stands among the queries given.
        shares: [K] float64, the share of the experts' weight, of those that answered, behind the reference.
        dropped: reason -> how many got none.
    """

    queries: list[Query]
    rows: np.ndarray
    shares: np.ndarray
    dropped: Counter[str]


def consensus_references(
    queries: Sequence[Query],
    answers: Mapping[str, Sequence[Answer]],
    grader: str,
    *,
    weights: Mapping[str, float | Sequence[float]] | None = None,
    teacher: str | None = None,
    least_share: float = 0.6,
) -> Consensus:
    """Takes as reference what most experts answer, or what a teacher does. What the queries had before is replaced.

    Failed calls, and outputs without an answer in normal form, do not vote. Queries are dropped for "no answers" (fewer
    than 2, or none of the teacher), "tie" and "low agreement" (one alone, or too little weight); a teacher's answer
    stands whatever the others say.

    Agreement is no proof: of the tiny table's questions 38% get a reference, from three of five experts or more. Of
    these 87% are right, but of count, where the experts share a mistake, 32%. The best expert as teacher: 75% of all.
    Weights from estimates of each query do better, see `benchmarks/AGREEMENT.md`.

    Args:
        answers: of each expert, its answers in the queries' order.
        grader: whose normal form counts, a name in `experts.grading.NORMAL_FORMS`.
        weights: of each expert, one or one a query; 1 where not given. With 0 it does not vote.
        teacher: the expert whose answer is the reference.
        least_share: the least share of the weight that a majority needs, in [0, 1].

    Raises:
        InputError: one of these is not so.
    """
    given_weights = dict.fromkeys(answers, 1.0) | dict(weights or {})
    weight = {name: np.asarray(given, np.float64) for name, given in given_weights.items()}
    _check_votes(queries, answers, grader, weight, teacher, least_share)
    weight = {name: np.broadcast_to(given, len(queries)) for name, given in weight.items()}
    rows, references, shares, dropped = [], [], [], Counter[str]()
    for i, query in enumerate(queries):
        mine = {name: float(weight[name][i]) for name in answers}
        outputs = {name: given[i] for name, given in answers.items() if mine[name] > 0 or name == teacher}
        said = {name: NORMAL_FORMS[grader](one.text, query) for name, one in outputs.items() if not one.error}
        reference, share, reason = _vote({k: v for k, v in said.items() if v is not None}, mine, teacher, least_share)
        if reason:
            dropped[reason] += 1
        else:
            rows.append(i)
            references.append(reference)
            shares.append(share)
    kept = [replace(queries[i], reference=reference) for i, reference in zip(rows, references, strict=True)]
    return Consensus(kept, np.array(rows, np.int64), np.array(shares, np.float64), dropped)


def _vote(
    said: Mapping[str, str], weight: Mapping[str, float], teacher: str | None, least_share: float
) -> tuple[str, float, str]:
    """The reference, its share of the weight, and the reason why there is none (empty where there is one)."""
    if len(said) < 2 if teacher is None else teacher not in said:
        return "", 0.0, "no answers"
    tally: dict[str, float] = {}
    for name, answer in said.items():
        tally[answer] = tally.get(answer, 0.0) + weight[name]
    total = math.fsum(tally.values()) or 1.0
    if teacher is not None:
        return said[teacher], tally[said[teacher]] / total, ""
    best, *others = sorted(tally, key=lambda answer: -tally[answer])
    if others and math.isclose(tally[best], tally[others[0]]):
        return "", 0.0, "tie"
    enough = tally[best] / total >= least_share and list(said.values()).count(best) > 1
    return best, tally[best] / total, "" if enough else "low agreement"


def _check_votes(
    queries: Sequence[Query],
    answers: Mapping[str, Sequence[Answer]],
    grader: str,
    weight: Mapping[str, np.ndarray],
    teacher: str | None,
    least_share: float,
) -> None:
    if grader not in NORMAL_FORMS:
        raise InputError(f"grader: {grader!r} is none of {', '.join(NORMAL_FORMS)}")
    for field, names in {"weights": list(weight), "teacher": [teacher] if teacher is not None else []}.items():
        for name in names:
            if name not in answers:
                raise InputError(f"{field}: no answers of an expert {name!r}; there are {', '.join(answers) or 'none'}")
    if not 0 <= least_share <= 1:
        raise InputError(f"least_share: {least_share} is not in [0, 1]")
    for name, given in answers.items():
        if len(given) != len(queries):
            raise InputError(f"answers: expert {name!r} has {len(given)} for {len(queries)} queries")
        if (
            weight[name].shape not in ((), (len(queries),))
            or not ((weight[name] >= 0) & np.isfinite(weight[name])).all()
        ):
            raise InputError(f"weights: {weight[name]} of expert {name!r} is not a number >= 0, nor one a query")
