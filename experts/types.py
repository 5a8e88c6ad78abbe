"""Defines queries, answers and the interfaces of experts and text encoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

EMPTY = "empty reply"  # how the error of an answer without text begins
CUT_OFF = "length"  # the finish reason of a reply that its expert's own `max_tokens` cut off
OUT_OF_MONEY = "budget"  # the finish reason of a reply that was cut off because its call could pay for no more


@dataclass(frozen=True)
class Query:
    """One question. Graders compare answers with `reference`; `split` is "train", "val", "test" or None."""

    query_id: str
    text: str
    domain: str = ""
    reference: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Conversation(Query):
    """A query with what came before it: `turns` are its prompt, as pairs of role and text."""

    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Chat(Query):
    """A conversation in the messages of OpenAI's API, as live experts take them. `text` is what the encoder sees of it.

    Attributes:
        messages: the conversation.
        most_tokens: the most that the messages count, without what an expert adds.
        tokens: an estimate of the same.
        needs: what an expert must be able to do, in the words of pool.yaml's `can`.
    """

    messages: tuple[dict[str, Any], ...] = ()
    most_tokens: float = 0.0
    tokens: int = 0
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The result of one call.

    Attributes:
        text: what the expert answered, without its reasoning; empty if the call failed.
        prompt_tokens: all tokens of the prompt, those from and into a cache included.
        completion_tokens: all tokens written, reasoning included.
        cost_usd: what the answer cost, in dollars; 0 if the call failed.
        latency_s: how long the call took, with all of its attempts.
        error: why the call failed; None if it did not.
        finish_reason: why the expert stopped, as its server says, such as "stop", "length" or "content_filter";
            "budget" where it was cut off because the call's limit in dollars pays for no more.
        reasoning: what it thought before it answered; never graded.
        lost_usd: what attempts that brought no answer were, or may have been, billed, in dollars.
        cached_tokens: of `prompt_tokens`, those read from a cache.
        cache_write_tokens: of `prompt_tokens`, those written to a cache.
        reasoning_tokens: of `completion_tokens`, those of the reasoning.
        logprob: the mean log-probability of the tokens written, without those that state a confidence which was asked
            for; None where the backend does not say.
        confidence: the probability in [0, 1] that the answer is right, as the expert states it; None where it does not.
        usage: where the counts come from: the server "reported" them, a tokenizer "counted" them, or the most that
            the call could take is "assumed".
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    latency_s: float
    error: str | None = None
    finish_reason: str | None = None
    reasoning: str = ""
    lost_usd: float = 0.0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    usage: Literal["reported", "counted", "assumed"] = "reported"
    logprob: float | None = None
    confidence: float | None = None

    @property
    def billed_usd(self) -> float:
        """All that the call was, or may have been, billed, in dollars."""
        return self.cost_usd + self.lost_usd

    @property
    def is_empty(self) -> bool:
        """Whether the expert replied, but without a text: it was cut off while it reasoned, or filtered."""
        return self.error is not None and self.error.startswith(EMPTY)


class Expert(Protocol):
    """A model that answers queries. Safe to call from several threads."""

    name: str

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """The answers to a batch, in the same order. A failed call gives an answer with `error`."""
        ...


@runtime_checkable
class PartwiseExpert(Expert, Protocol):
    """An expert whose answers can be stored before all of a batch are there."""

    def answer_in_parts(self, queries: Sequence[Query]) -> Iterator[Sequence[tuple[int, Answer]]]:
        """The answers as they come, each with the place of its query. The next is asked for when this is stored."""
        ...


class LimitedExpert(Expert, Protocol):
    """An expert that can be held to a budget. `spec`, an `experts.specs.ExpertSpec`, has its prices."""

    spec: Any

    def answer(self, queries: Sequence[Query], limits_usd: Sequence[float] | None = None) -> list[Answer]:
        """The same; no call is billed more than its limit, with all of its attempts.

        So it writes at most `spec.affordable_tokens(query, limit_usd)` tokens. If it needs more than these, fewer than
        `spec.max_tokens`, then the answer's `finish_reason` is "budget".
        """
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
