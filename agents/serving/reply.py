"""The delivered answer to a query, and the calls behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from experts.types import Query

StopReason = Literal["policy", "max calls", "money", "failed"]


@dataclass(frozen=True)
class Call:
    """One call about one query.

    Attributes:
        expert: its name.
        output: the text it returned, without its reasoning.
        answer: the short answer in the output, in normal form: equal strings are equal answers. None if there is none,
            or if the output was cut off when the money ended.
        agrees: whether this is the delivered answer.
        cost_usd: what the answer cost; 0 if the call failed.
        billed_usd: what the budget was charged: the cost, and what failed attempts were or may have been billed.
        finish_reason: why the expert stopped, as its server says. "length": cut off at its `max_tokens`; "budget": cut
            off when the money ended.
        confidence: the probability that its answer is right, as the expert stated it; None where it did not.
        error: why there is no output: the call failed, or the reply was empty.
    """

    expert: str
    output: str
    answer: str | None
    agrees: bool
    cost_usd: float
    billed_usd: float
    latency_s: float
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None
    confidence: float | None
    error: str | None


@dataclass(frozen=True)
class Route:
    """Who would answer a query, and what there is to say of it.

    Attributes:
        query: the query.
        expert: who would be asked first; None where no expert can be paid.
        score: by expert the estimated chance that it is right; None where the policy estimates none.
        cost_usd: by expert the estimated cost.
        usd_price: what money is worth, in score per dollar; None where the policy has no price for it.
        why: for people, how the expert was chosen.
    """

    query: Query
    expert: str | None
    score: dict[str, float] | None
    cost_usd: dict[str, float]
    usd_price: float | None
    why: str


@dataclass(frozen=True)
class Reply:
    """The delivered answer to a query, and the calls behind it.

    Attributes:
        query: the query.
        text: the delivered output; None if no expert answered, or all answers were cut off when the money ended.
        answer: the short answer in it, in normal form; None if there is none.
        expert: the expert that gave the delivered output.
        calls: the calls for this query, in order, those that failed as well.
        stop_reason: why no further call was made. "policy": the policy chose to deliver. "max calls": the most calls
            were made, or no other expert is left. "money": what is left does not pay for a call to another expert, or
            there is no answer because every one was cut off when the money ended. "failed": there is no answer, because
            every call that could be made failed.
    """

    query: Query
    text: str | None
    answer: str | None
    expert: str | None
    calls: tuple[Call, ...]
    stop_reason: StopReason

    @property
    def cost_usd(self) -> float:
        return sum(call.cost_usd for call in self.calls)

    @property
    def billed_usd(self) -> float:
        return sum(call.billed_usd for call in self.calls)

    @property
    def latency_s(self) -> float:
        """Sum over the calls, which are made one after another."""
        return sum(call.latency_s for call in self.calls)

    @property
    def supporters(self) -> list[str]:
        """The experts that gave the delivered answer."""
        return [call.expert for call in self.calls if call.agrees]
