"""Decides whether experts' outputs give the same answer: by normal form, or for free text by cosine similarity."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from experts.reasoning import split_reasoning
from experts.types import Query, TextEncoder
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable

# Maps a query and the outputs for it, in the order of the calls, to one answer each: equal strings are equal answers,
# None is no answer. The answers of the first outputs must not change when more outputs follow.
Compare = Callable[[Query, Sequence[str]], list[str | None]]

DEADLINE_S = 10.0  # of one comparison

log = logging.getLogger(__name__)


def by_normal_form(name: str) -> Compare:
    """Compares answers by their normal form; `name` is the grader that filled the table. Raises InputError."""
    from experts.grading import NORMAL_FORMS  # takes a tenth of a second, and choosing does not need it

    if name not in NORMAL_FORMS:
        raise InputError(f"compare: no normal form named {name!r}; there are {', '.join(NORMAL_FORMS)}")
    form = NORMAL_FORMS[name]
    form("0", Query("", ""))  # fails where a package is missing, before any call is paid for
    return lambda query, outputs: [form(output, query) if output.strip() else None for output in outputs]


def by_similarity(encoder: TextEncoder, threshold: float) -> Compare:
    """Compares free texts: the same answer where the cosine of their embeddings is `threshold` or more.

    Greedy clustering: each text joins the first cluster whose first text is similar, or begins one. That first text is
    the cluster's answer. Reasoning does not count.
    """

    def compare(query: Query, outputs: Sequence[str]) -> list[str | None]:
        outputs = [split_reasoning(output)[1] for output in outputs]
        given = [i for i, output in enumerate(outputs) if output.strip()]
        answers: list[str | None] = [None] * len(outputs)
        if not given:
            return answers
        x = encoder.encode([outputs[i] for i in given])
        firsts: list[int] = []
        for place, i in enumerate(given):
            similar = next((first for first in firsts if x[first] @ x[place] >= threshold), None)
            if similar is None:
                firsts.append(place)
            answers[i] = outputs[given[place if similar is None else similar]]
        return answers

    return compare


def compare_safely(compare: Compare, query: Query, outputs: Sequence[str]) -> list[str | None]:
    """The answers that `compare` finds; if it fails, or takes longer than a deadline, the outputs as they are.

    Answers have been paid for when they are compared, so nothing that goes wrong here may lose them.
    """
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers = list(compare(query, outputs))
            if len(answers) != len(outputs) or not all(isinstance(a, str | None) for a in answers):
                raise TypeError(f"{len(outputs)} outputs: not as many texts or None")
            found.put(answers)
        except BaseException as error:
            found.put(error)

    threading.Thread(target=work, name="compare", daemon=True).start()
    try:
        answers = found.get(timeout=DEADLINE_S)
    except queue.Empty:
        answers = TimeoutError(f"took longer than {DEADLINE_S:g} s")
    if isinstance(answers, list):
        return answers
    log.warning("compare: %s: %s; outputs are compared as they are", type(answers).__name__, answers)
    return [" ".join(output.split()) or None for output in outputs]


def fit_threshold(similarity: np.ndarray, same: np.ndarray) -> float:
    """The threshold on `similarity` [n] with the highest balanced accuracy in telling which pairs are the `same` [n].

    It lies midway between two similarities.

    Raises:
        InputError: all pairs are the same, or none is.
    """
    same = np.asarray(same, dtype=bool)
    if same.all() or not same.any():
        raise InputError("fit_threshold: needs pairs of texts with the same answer and pairs that are not the same")
    values = np.unique(similarity)
    cuts = np.concatenate([values[:1], (values[:-1] + values[1:]) / 2, values[-1:] + 1e-6])
    positive, negative = np.sort(similarity[same]), np.sort(similarity[~same])
    sensitivity = 1 - np.searchsorted(positive, cuts) / len(positive)
    specificity = np.searchsorted(negative, cuts) / len(negative)
    return float(cuts[(sensitivity + specificity).argmax()])


def answer_pairs(
    table: ExpertTable, encoder: TextEncoder, split: str = "val", same_by: Literal["score", "answer"] = "score"
) -> tuple[np.ndarray, np.ndarray]:
    """`similarity` and `same` [n] for `fit_threshold`: of the outputs of every two experts on a split's queries.

    Args:
        same_by: "answer": the same where the table's column `answer` is equal; "score": where both are right. Pairs of
            which both are wrong are then left out, as they may or may not be the same.
    """
    outputs, rows = _outputs(table), table.rows(split).cpu().numpy()
    texts = sorted({outputs[row, k] for row in rows for k in range(len(table.experts)) if outputs[row, k].strip()})
    place = {text: i for i, text in enumerate(texts)}
    x = encoder.encode(texts)
    labels: Any = (table.scores if same_by == "score" else table.answer_ids).cpu().numpy()
    pairs = [
        (place[outputs[row, a]], place[outputs[row, b]], _same(labels[row, a], labels[row, b], same_by))
        for row in rows
        for a, b in combinations(range(len(table.experts)), 2)
        if outputs[row, a].strip() and outputs[row, b].strip()
    ]
    left, right, same = (np.array([p[i] for p in pairs if p[2] is not None], dtype=np.int64) for i in range(3))
    return (x[left] * x[right]).sum(axis=1), same.astype(bool)


def _same(a: float, b: float, same_by: str) -> bool | None:
    """Whether two answers are the same, from their scores or ids; None where that cannot be decided."""
    if same_by == "answer":
        return bool(a == b) if a >= 0 and b >= 0 else None
    return bool(a >= 0.5 and b >= 0.5) if a >= 0.5 or b >= 0.5 else None


def _outputs(table: ExpertTable) -> np.ndarray:
    """The experts' outputs, [N, K] of str; "" where there is none."""
    if "output" not in table.answers.column_names:
        raise InputError(f"{table.name}: answers.parquet: output: missing; there are no texts to compare")
    row = {query_id: i for i, query_id in enumerate(table.queries["query_id"].to_pylist())}
    column = {name: k for k, name in enumerate(table.experts)}
    outputs = np.full((len(row), len(column)), "", dtype=object)
    columns = (table.answers[name].to_pylist() for name in ("query_id", "expert", "output"))
    for query_id, name, output in zip(*columns, strict=True):
        outputs[row[query_id], column[name]] = split_reasoning(output or "")[1]
    return outputs
