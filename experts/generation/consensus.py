"""Sets references of queries without one: the answer that several experts agree on, or that of a teacher."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experts.grading import NORMAL_FORMS
from experts.types import Answer, Query
from leeroo_env.errors import InputError
from leeroo_env.variants import entry_of


@dataclass(frozen=True)
class Consensus:
    """The queries that received a reference.

    Attributes:
        queries: with `reference` set, in normal form.
        rows: [n] int64, their indices among the given queries.
        shares: [n] float64, the share of weight behind the reference, among the experts that answered.
        dropped: by reason, how many queries received none.
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
    """Takes the majority answer or a teacher's answer as the reference, in place of any earlier one.

    Failed calls, and outputs without an answer in normal form, do not vote, and variants of one model that agree have
    one vote, of the largest weight among theirs. Queries are dropped for "no answers" (fewer
    than 2, or none of the teacher), "tie" and "low agreement" (a single vote, or too little weight). A teacher's answer
    counts regardless of the others.

    Agreement does not imply correctness: 38% of the tiny table's questions get a reference, from at least three of five
    experts. 87% of these are right, but only 32% in count, where the experts share a mistake. With the best expert as
    teacher, 75% of all are right. Weights from estimates of each query do better, see `benchmarks/AGREEMENT.md`.

    Args:
        answers: by expert, in the order of the queries.
        grader: its normal form is compared; a name in `experts.grading.NORMAL_FORMS`.
        weights: by expert, a number or one per query; default 1. An expert with weight 0 does not vote.
        teacher: the expert whose answer is the reference.
        least_share: the smallest share of weight that a majority needs, in [0, 1].

    Raises:
        InputError: an argument is invalid.
    """
    given_weights = dict.fromkeys(answers, 1.0) | dict(weights or {})
    weight = {name: np.asarray(given, np.float64) for name, given in given_weights.items()}
    _check_arguments(queries, answers, grader, weight, teacher, least_share)
    weight = {name: np.broadcast_to(given, len(queries)) for name, given in weight.items()}
    form = NORMAL_FORMS[grader]
    rows, references, shares, dropped = [], [], [], Counter[str]()
    for i, query in enumerate(queries):
        row_weight = {name: float(weight[name][i]) for name in answers}
        outputs = {name: given[i] for name, given in answers.items() if row_weight[name] > 0 or name == teacher}
        forms = {name: form(one.text, query) for name, one in outputs.items() if not one.error}
        votes = {name: answer for name, answer in forms.items() if answer is not None}
        votes = _without_repeats(votes, {name: (name == teacher, row_weight[name]) for name in votes}, list(answers))
        reference, share, reason = _count(votes, row_weight, teacher, least_share)
        if reason:
            dropped[reason] += 1
        else:
            rows.append(i)
            references.append(reference)
            shares.append(share)
    kept = [replace(queries[i], reference=reference) for i, reference in zip(rows, references, strict=True)]
    return Consensus(kept, np.array(rows, np.int64), np.array(shares, np.float64), dropped)


def _without_repeats(
    votes: Mapping[str, str], rank: Mapping[str, tuple[bool, float]], experts: Sequence[str]
) -> dict[str, str]:
    """The votes, of those for one answer by variants of one model only the one that ranks first."""
    kept: dict[tuple[str, str], str] = {}
    for name, answer in votes.items():
        one = (entry_of(name, experts), answer)
        kept[one] = max(kept.get(one, name), name, key=rank.__getitem__)
    names = set(kept.values())
    return {name: answer for name, answer in votes.items() if name in names}


def _count(
    votes: Mapping[str, str], weight: Mapping[str, float], teacher: str | None, least_share: float
) -> tuple[str, float, str]:
    """The reference, its share of the weight, and the reason why there is none (empty if there is one)."""
    if len(votes) < 2 if teacher is None else teacher not in votes:
        return "", 0.0, "no answers"
    tally: dict[str, float] = {}
    for name, answer in votes.items():
        tally[answer] = tally.get(answer, 0.0) + weight[name]
    total = math.fsum(tally.values()) or 1.0
    if teacher is not None:
        return votes[teacher], tally[votes[teacher]] / total, ""
    best, *others = sorted(tally, key=lambda answer: -tally[answer])
    if others and math.isclose(tally[best], tally[others[0]]):
        return "", 0.0, "tie"
    enough = tally[best] / total >= least_share and list(votes.values()).count(best) > 1
    return best, tally[best] / total, "" if enough else "low agreement"


def _check_arguments(
    queries: Sequence[Query],
    answers: Mapping[str, Sequence[Answer]],
    grader: str,
    weight: Mapping[str, np.ndarray],
    teacher: str | None,
    least_share: float,
) -> None:
    if grader not in NORMAL_FORMS:
        raise InputError(f"grader: {grader!r} is not one of {', '.join(NORMAL_FORMS)}")
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
            raise InputError(f"weights: {weight[name]} of expert {name!r} is not a number >= 0, or one per query")
