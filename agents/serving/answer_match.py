"""Do two experts give the same answer? By its normal form where answers have one, else by how alike the texts are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from experts.grading import NORMAL_FORMS
from experts.types import Query, TextEncoder
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable

# The answers in the outputs that one query brought, in the order they came: equal strings are equal answers, None is
# no answer. Those of the first outputs do not change when more come.
Compare = Callable[[Query, Sequence[str]], list[str | None]]


def by_normal_form(name: str) -> Compare:
    """Answers agree where their normal forms are equal; `name` is that of the grader the table was filled with."""
    if name not in NORMAL_FORMS:
        raise InputError(f"compare: no normal form named {name!r}; there are {', '.join(NORMAL_FORMS)}")
    form = NORMAL_FORMS[name]
    form("0", Query("", ""))  # says so where a package is missing, before anything is paid for
    return lambda query, outputs: [form(output, query) if output.strip() else None for output in outputs]


def by_similarity(encoder: TextEncoder, threshold: float) -> Compare:
    """Free texts agree where the cosine of their embeddings is `threshold` or more.

    Each joins the first earlier text that it is like, of those that joined no other: that one is its normal form.
    """

    def compare(query: Query, outputs: Sequence[str]) -> list[str | None]:
        given = [i for i, output in enumerate(outputs) if output.strip()]
        x = encoder.encode([outputs[i] for i in given])
        answers: list[str | None] = [None] * len(outputs)
        firsts: list[int] = []
        for place, i in enumerate(given):
            alike = next((first for first in firsts if x[first] @ x[place] >= threshold), None)
            if alike is None:
                firsts.append(place)
            answers[i] = outputs[given[place if alike is None else alike]]
        return answers

    return compare


def fit_threshold(similarity: np.ndarray, same: np.ndarray) -> float:
    """The threshold at which "alike" tells best which pairs are the `same` [n] bool, from their `similarity` [n].

    Best by balanced accuracy, since most pairs may be the same. It lies midway between two similarities.

    Raises:
        InputError: all pairs are the same, or none is.
    """
    same = np.asarray(same, dtype=bool)
    if same.all() or not same.any():
        raise InputError("fit_threshold: needs pairs of texts that are the same answer, and pairs that are not")
    values = np.unique(similarity)
    cuts = np.concatenate([values[:1], (values[:-1] + values[1:]) / 2, values[-1:] + 1e-6])
    alike, unlike = np.sort(similarity[same]), np.sort(similarity[~same])
    found = 1 - np.searchsorted(alike, cuts) / len(alike)
    spared = np.searchsorted(unlike, cuts) / len(unlike)
    return float(cuts[(found + spared).argmax()])


def answer_pairs(
    table: ExpertTable, encoder: TextEncoder, split: str = "val", same_by: Literal["score", "answer"] = "score"
) -> tuple[np.ndarray, np.ndarray]:
    """What `fit_threshold` takes, from the outputs of every two experts on the queries of a split.

    Args:
        same_by: "answer": the same is what the table's column `answer` says; "score": two that are right. Two that are
            wrong may or may not be the same, and do not count.
    """
    outputs, rows = _outputs(table), table.rows(split).cpu().numpy()
    texts = sorted({outputs[row, k] for row in rows for k in range(len(table.experts)) if outputs[row, k].strip()})
    place = {text: i for i, text in enumerate(texts)}
    x = encoder.encode(texts)
    told: Any = (table.scores if same_by == "score" else table.answer_ids).cpu().numpy()
    pairs = [
        (place[outputs[row, a]], place[outputs[row, b]], _same(told[row, a], told[row, b], same_by))
        for row in rows
        for a, b in combinations(range(len(table.experts)), 2)
        if outputs[row, a].strip() and outputs[row, b].strip()
    ]
    left, right, same = (np.array([p[i] for p in pairs if p[2] is not None], dtype=np.int64) for i in range(3))
    return (x[left] * x[right]).sum(axis=1), same.astype(bool)


def _same(a: float, b: float, same_by: str) -> bool | None:
    """Whether two answers are the same, from their scores or ids; None where that tells nothing."""
    if same_by == "answer":
        return bool(a == b) if a >= 0 and b >= 0 else None
    return bool(a >= 0.5 and b >= 0.5) if a >= 0.5 or b >= 0.5 else None


def _outputs(table: ExpertTable) -> np.ndarray:
    """The experts' outputs [N, K]; "" where there is none."""
    if "output" not in table.answers.column_names:
        raise InputError(f"{table.name}: answers.parquet: output: missing; there are no texts to compare")
    row = {query_id: i for i, query_id in enumerate(table.queries["query_id"].to_pylist())}
    column = {name: k for k, name in enumerate(table.experts)}
    outputs = np.full((len(row), len(column)), "", dtype=object)
    columns = (table.answers[name].to_pylist() for name in ("query_id", "expert", "output"))
    for query_id, name, output in zip(*columns, strict=True):
        outputs[row[query_id], column[name]] = output or ""
    return outputs
