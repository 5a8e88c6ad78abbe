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

FILTER_BLOCK = 256  # queries compared at a time: 256 x 100,000 similarities are 100 MB


@dataclass(frozen=True)
class Limits:
    """From which cosine similarity on two queries count as one.

    No similarity tells a template's next question from the same question in other words. With all-MiniLM-L6-v2 "What is
    12 + 47?" has 0.89 with "What is 13 + 47?" but 0.75 with "Add 12 and 47.", two sortings of unlike digits have up to
    0.99, two ways to ask for the capital of France 0.96. So numbers and names decide with it. Against val and test the
    limits are strict all the same, and drop 18% of the tiny tasks' new questions (6% are there word for word; of sort
    it is 36%, of weekday, which has few texts, 62%), and 3.5% of MMLU-Pro's own training questions (1.3%). What was
    seen costs the tiny tasks another 8%, nearly all word for word, and MMLU-Pro 1.3%.

    Attributes:
        reserved: between a new query and one of val or test, whatever they say.
        reserved_same: the same, where both hold the same numbers and names, and at least one.
        seen: between a new query and any other, where both hold the same numbers and names, or none.
    """

    reserved: float = 0.95
    reserved_same: float = 0.7
    seen: float = 0.95


@dataclass(frozen=True)
class Filtered:
    """What passed: queries, their embeddings [K, D] float32 of length 1, and reason -> how many did not pass."""

    queries: list[Query]
    embeddings: np.ndarray
    dropped: Counter[str]


class NoveltyFilter:
    """Lets through queries that are neither near to val or test nor to anything seen before.

    Args:
        encoder: embeds the texts.
        reserved: the texts of val and test.
        seen: the training texts there are already; what passes is added to them.
        limits: see `Limits`.

    Raises:
        InputError: the encoder gave something that is no embedding, here or in `filter`.
    """

    def __init__(
        self, encoder: TextEncoder, reserved: Sequence[str], seen: Sequence[str] = (), limits: Limits | None = None
    ) -> None:
        self._encoder, self._limits = encoder, limits or Limits()
        self._mark_ids: dict[tuple[str, ...], int] = {(): 0}
        self._reserved, self._seen = self._known(reserved), self._known(seen)

    def filter(self, queries: Sequence[Query]) -> Filtered:
        """Drops queries as "reserved" or "seen" (see `normal_question`), or as "close to reserved" or "close to seen".

        Whether a query passes depends on those before it, and not on how they are cut into calls.
        """
        new = self._known([query.text for query in queries])
        kept, dropped = [], Counter[str]()
        for start in range(0, len(queries), FILTER_BLOCK):
            reasons = self._reasons(new.rows(range(start, min(start + FILTER_BLOCK, len(queries)))))
            passed = [start + i for i, reason in enumerate(reasons) if not reason]
            self._seen = self._seen.joined(new.rows(passed))
            kept += passed
            dropped.update(reason for reason in reasons if reason)
        return Filtered([queries[i] for i in kept], new.vectors[kept], dropped)

    def _reasons(self, new: _Texts) -> list[str]:
        """Why each text of a block does not pass; empty where it does."""
        reserved, seen = set(self._reserved.forms), set(self._seen.forms)
        near_reserved, near_new = self._near_reserved(new), self._near_seen(new, new)
        near_seen = np.asarray(self._near_seen(new, self._seen).any(axis=1))
        reasons: list[str] = []
        for i, form in enumerate(new.forms):
            checks = {
                "reserved": form in reserved,
                "close to reserved": near_reserved[i],
                "seen": form in seen,
                "close to seen": near_seen[i],
            }
            reasons.append(next((reason for reason, holds in checks.items() if holds), ""))
            if not reasons[-1]:
                seen.add(form)
                near_seen |= near_new[:, i]
        return reasons

    def _near_reserved(self, new: _Texts) -> np.ndarray:
        """[n] bool."""
        similar = new.vectors @ self._reserved.vectors.T
        same = (new.marks[:, None] == self._reserved.marks) & (new.marks[:, None] != 0)
        return ((similar >= self._limits.reserved) | (same & (similar >= self._limits.reserved_same))).any(axis=1)

    def _near_seen(self, new: _Texts, old: _Texts) -> np.ndarray:
        """[n, m] bool."""
        return (new.vectors @ old.vectors.T >= self._limits.seen) & (new.marks[:, None] == old.marks)

    def _known(self, texts: Sequence[str]) -> _Texts:
        vectors = np.asarray(self._encoder.encode(list(texts)), np.float32)
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not (np.isfinite(lengths) & (lengths > 0)).all():
            raise InputError(f"encoder: {len(texts)} texts gave {vectors.shape}, or an embedding zero or not finite")
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
    """A text without what makes no other question: "What is 12 + 47?" and "what is 12+47" have one form."""
    return re.sub(r" ?([^\w\s]) ?", r"\1", normal_text(text)).rstrip("?. ")


def _marks(text: str) -> tuple[str, ...]:
    """What tells questions of one template apart: numbers, and capitalised words that begin no sentence, sorted."""
    return tuple(sorted(re.findall(r"\d+(?:\.\d+)?|(?<=[a-z0-9,;:] )[A-Z]\w+", text)))
