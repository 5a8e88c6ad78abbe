"""Drops new queries that are too similar to validation or test queries, or to queries that exist already."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experts.grading import normal_text
from experts.types import Query, TextEncoder
from leeroo_env.errors import InputError

FILTER_BLOCK = 256  # queries compared at a time: 256 x 100,000 similarities take 100 MB


@dataclass(frozen=True)
class Limits:
    """Cosine similarities from which two queries count as the same.

    Similarity alone does not separate another question of the same template from the same question in other words.
    With all-MiniLM-L6-v2, "What is 12 + 47?" has similarity 0.89 to "What is 13 + 47?" but 0.75 to "Add 12 and 47.",
    two sorting tasks with different digits have up to 0.99, and two ways to ask for the capital of France 0.96. So
    numbers and names are compared too.

    The limits against val and test are strict: they drop 18% of the tiny tasks' new questions (6% are there word for
    word; 36% of sort, 62% of weekday, which has few texts) and 3.5% of MMLU-Pro's own training questions (1.3%). The
    limit against known questions drops another 8% of the tiny tasks', nearly all word for word, and 1.3% of MMLU-Pro's.

    Attributes:
        reserved: between a new query and one of val or test.
        reserved_same: the same, if both contain the same numbers and names, and at least one.
        known: between a new query and any other, if both contain the same numbers and names, or none.
    """

    reserved: float = 0.95
    reserved_same: float = 0.7
    known: float = 0.95


@dataclass(frozen=True)
class Filtered:
    """The new queries, their unit embeddings [N, D] float32, and the number of dropped queries by reason."""

    queries: list[Query]
    embeddings: np.ndarray
    dropped: Counter[str]


class NoveltyFilter:
    """Keeps the queries that are similar neither to val or test nor to any known query.

    Args:
        encoder: embeds the texts.
        reserved: the texts of val and test.
        known: the existing training texts; the filter adds each query that it keeps.
        limits: see `Limits`.

    Raises:
        InputError: the encoder returns invalid embeddings, here or in `filter`.
    """

    def __init__(
        self, encoder: TextEncoder, reserved: Sequence[str], known: Sequence[str] = (), limits: Limits | None = None
    ) -> None:
        self._encoder, self._limits = encoder, limits or Limits()
        self._mark_ids: dict[tuple[str, ...], int] = {(): 0}
        self._reserved, self._known = self._prepare(reserved), self._prepare(known)

    def filter(self, queries: Sequence[Query]) -> Filtered:
        """Drops queries as "reserved" or "seen" (equal `normal_question`), "close to reserved" or "close to seen".

        The result depends on the order of the queries, but not on their division into calls.
        """
        new = self._prepare([query.text for query in queries])
        kept, dropped = [], Counter[str]()
        for start in range(0, len(queries), FILTER_BLOCK):
            reasons = self._reasons(new.rows(range(start, min(start + FILTER_BLOCK, len(queries)))))
            new_rows = [start + i for i, reason in enumerate(reasons) if not reason]
            self._known = self._known.joined(new.rows(new_rows))
            kept += new_rows
            dropped.update(reason for reason in reasons if reason)
        return Filtered([queries[i] for i in kept], new.vectors[kept], dropped)

    def _reasons(self, new: _Texts) -> list[str]:
        """The reason for dropping each text of a block; empty if it is kept."""
        reserved, known = set(self._reserved.forms), set(self._known.forms)
        near_reserved, near_new = self._near_reserved(new), self._near_known(new, new)
        near_known = np.asarray(self._near_known(new, self._known).any(axis=1))
        reasons: list[str] = []
        for i, form in enumerate(new.forms):
            checks = {
                "reserved": form in reserved,
                "close to reserved": near_reserved[i],
                "seen": form in known,
                "close to seen": near_known[i],
            }
            reasons.append(next((reason for reason, holds in checks.items() if holds), ""))
            if not reasons[-1]:
                known.add(form)
                near_known |= near_new[:, i]
        return reasons

    def _near_reserved(self, new: _Texts) -> np.ndarray:
        """Whether each new text is too similar to one of val or test, [n] bool."""
        similar = new.vectors @ self._reserved.vectors.T
        same = (new.marks[:, None] == self._reserved.marks) & (new.marks[:, None] != 0)
        return ((similar >= self._limits.reserved) | (same & (similar >= self._limits.reserved_same))).any(axis=1)

    def _near_known(self, new: _Texts, old: _Texts) -> np.ndarray:
        """Whether each new text is too similar to each old one, [n, m] bool."""
        return (new.vectors @ old.vectors.T >= self._limits.known) & (new.marks[:, None] == old.marks)

    def _prepare(self, texts: Sequence[str]) -> _Texts:
        vectors = np.asarray(self._encoder.encode(list(texts)), np.float32)
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not (np.isfinite(lengths) & (lengths > 0)).all():
            raise InputError(
                f"encoder: {len(texts)} texts gave {vectors.shape}, or embeddings of zero or non-finite length"
            )
        marks = [self._mark_ids.setdefault(_marks(text), len(self._mark_ids)) for text in texts]
        return _Texts(vectors / lengths, np.array(marks, np.int64), [normal_question(text) for text in texts])


@dataclass(frozen=True)
class _Texts:
    """Texts prepared for comparison: unit vectors [N, D], ids of their marks [N] (0: no marks), normal forms."""

    vectors: np.ndarray
    marks: np.ndarray
    forms: list[str]

    def rows(self, rows: Sequence[int]) -> _Texts:
        return _Texts(self.vectors[rows], self.marks[rows], [self.forms[i] for i in rows])

    def joined(self, other: _Texts) -> _Texts:
        vectors = np.concatenate([self.vectors, other.vectors])
        return _Texts(vectors, np.concatenate([self.marks, other.marks]), self.forms + other.forms)


def normal_question(text: str) -> str:
    """The normal form of a question: "What is 12 + 47?" and "what is 12+47" have the same."""
    return re.sub(r" ?([^\w\s]) ?", r"\1", normal_text(text)).rstrip("?. ")


def _marks(text: str) -> tuple[str, ...]:
    """What distinguishes questions of one template: its numbers and its capitalised words within sentences, sorted."""
    return tuple(sorted(re.findall(r"\d+(?:\.\d+)?|(?<=[a-z0-9,;:] )[A-Z]\w+", text)))
