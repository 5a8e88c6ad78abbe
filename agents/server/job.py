"""The records of a request on its way from a client to an expert and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from agents.server.money import KeyInfo
from agents.server.routing import Money, Plan
from agents.server.wire import ChatCompletionRequest
from experts.live import ChatRequest, Chunk, Completion, LiveExpert, Stream, UpstreamError


@dataclass
class Job:
    """One request on its way.

    Attributes:
        id: of the decision, under which it is answered, recorded and rated.
        key: who pays.
        request: as it came, checked.
        chat: what goes to an expert.
        plan: what the policy knows.
        money: what the policy may count on.
        left_micro: what is not spent of key, team and server, less what this request has cost; None: no limit.
        able: the experts that can do what the request needs.
        max_calls: the most experts whose answers are compared.
        deadline: on the monotonic clock.
        current: the expert that answered the turn before.
        asked_for: the expert that the client asks for by name.
        completions: what succeeded, by the number of the call.
        failures: what did not.
        cost_micro: what the key is charged.
        reservations: number of attempts that were begun.
        why: for people, how the expert was chosen.
        last_resort: whether experts that should be left alone are asked, since there are no others.
        expert: the name of the one whose answer is delivered.
        policy: the name of the one that decides; "" where an expert is asked for by name.
        is_gone: tells whether the client has gone away, so that no further expert is asked.
        span: of the request, for OpenTelemetry; None: nobody collects spans.
    """

    id: str
    key: KeyInfo
    request: ChatCompletionRequest
    chat: ChatRequest
    plan: Plan
    money: Money
    left_micro: int | None
    able: list[int]
    max_calls: int
    deadline: float
    current: int | None = None
    asked_for: LiveExpert | None = None
    completions: dict[int, Completion] = field(default_factory=dict)
    failures: list[UpstreamError] = field(default_factory=list)
    cost_micro: int = 0
    reservations: int = 0
    why: str = ""
    last_resort: bool = False
    expert: str = ""
    policy: str = ""
    is_gone: Callable[[], Awaitable[bool]] | None = None
    span: Any = None

    @property
    def last(self) -> Completion | None:
        """The last that succeeded; where there is no whole answer, what was written until the money ended."""
        return next(reversed(self.completions.values()), None)

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Reserved:
    """A reservation in the ledger, and the most that its attempt can cost."""

    id: str
    worst_micro: int


@dataclass
class OpenStream:
    """A stream that has brought its first chunk, and is settled by `Gateway.settle_once`."""

    gateway: Any  # that has opened it
    job: Job
    expert: LiveExpert
    chat: ChatRequest
    reserved: Reserved
    stream: Stream
    first: Chunk | None
    span: Any = None
    is_read: bool = False  # whether the client has taken all of it
    settling: asyncio.Task[Completion | UpstreamError] | None = None


@dataclass(frozen=True)
class Hints:
    """What a client may tell beyond OpenAI's API, in headers.

    Attributes:
        domain: of the query.
        queries_left: how many queries its money must last for, this one included.
        embedding: [D], of the query.
    """

    domain: str = ""
    queries_left: int | None = None
    embedding: Any = None
