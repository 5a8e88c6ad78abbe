"""Defines queries, answers and the interfaces of experts and text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Query:
    """One question. Graders compare answers with `reference`; `split` is "train", "val", "test" or None."""

    query_id: str
    text: str
    domain: str = ""
    reference: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Answer:
    """The result of one call. If `error` is set the call failed: the text is empty and the cost is zero."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    latency_s: float
    error: str | None = None


class Expert(Protocol):
    """A model that answers queries. Safe to call from several threads."""

    name: str

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """The answers to a batch, in the same order. A failed call gives an answer with `error`."""
        ...


class TextEncoder(Protocol):
    """A model that embeds texts; `experts.encoder.Encoder` is one."""

    @property
    def info(self) -> dict[str, Any]:
        """The encoder's description in table.json."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings [N, D] float32 of N texts, also where N is 0."""
        ...
