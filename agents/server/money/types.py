"""What the ledger takes and gives. Money is in whole micro-dollars (millionths of a dollar), times in Unix seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Period = Literal["day", "month", "total"]
Usage = Literal["reported", "counted", "assumed"]
Scope = Literal["key", "team", "server"]
By = Literal["key", "expert", "hour"]

MOST_MICRO = 10**15  # a billion dollars: no sum of a few thousand such amounts overflows 64 bits
MOST_TOKENS = 10**12


class StoreUnavailable(Exception):
    """The store cannot be reached or refuses to work. `unclear`: what was asked may have been done nevertheless."""

    def __init__(self, message: str, unclear: bool = False):
        self.unclear = unclear
        super().__init__(message)


class Refused(Exception):
    """A reservation that does not fit into what is left of a limit; nothing was reserved anywhere.

    `scope` is "key NAME", "team NAME" or "server".
    """

    def __init__(self, scope: str, left_micro: int, needed_micro: int, revoked: bool = False):
        self.scope, self.left_micro, self.needed_micro, self.revoked = scope, left_micro, needed_micro, revoked
        why = "is revoked" if revoked else f"has ${left_micro / 1e6:.6f} left, ${needed_micro / 1e6:.6f} may be needed"
        super().__init__(f"{scope} {why}")


@dataclass(frozen=True)
class KeyInfo:
    """An API key without its secret."""

    key_id: int
    name: str
    team: str | None
    micro_usd: int | None
    """the limit, top-ups included; None: no limit"""
    per: Period
    requests_per_minute: int | None
    revoked: bool
    prefix: str
    """the first characters of the secret, to recognise it by"""
    created_at: float


@dataclass(frozen=True)
class Budget:
    """What a key can still spend, and what that must last for."""

    left_micro: int | None
    """the least that is left of key, team and server, reservations taken off; None: there is no limit"""
    unspent_micro: int | None
    """the same with what is reserved for calls in flight, most of which will be released; None: there is no limit"""
    refills_at: float | None
    """when the limit that binds most begins anew; None: never"""
    queries_expected: int
    """queries that this money must last for, by their rate so far; at least 1"""


@dataclass(frozen=True)
class Charge:
    """What one attempt of one call came to. Raises ValueError for amounts that no call can have."""

    micro_usd: int
    """charged to the key"""
    lost_micro_usd: int = 0
    """billed for what was not delivered: the operator's loss, which counts against the server's limit only"""
    input: int = 0
    """not from the prompt cache; the five kinds of tokens do not overlap"""
    cached: int = 0
    cache_write: int = 0
    output: int = 0
    """without reasoning"""
    reasoning: int = 0
    usage: Usage = "reported"
    outcome: str = "answered"
    """answered, failed, cancelled or expired"""
    latency_s: float = 0.0
    price_version: str = ""

    def __post_init__(self) -> None:
        for name in ("micro_usd", "lost_micro_usd"):
            _check(name, getattr(self, name), MOST_MICRO)
        for name in ("input", "cached", "cache_write", "output", "reasoning"):
            _check(name, getattr(self, name), MOST_TOKENS)
        if not math.isfinite(self.latency_s):
            raise ValueError(f"latency_s: {self.latency_s} is not a time")


@dataclass(frozen=True)
class Account:
    """A limit and what is spent of it in the current period."""

    scope: Scope
    name: str
    micro_usd: int | None
    per: Period
    spent_micro: int
    reserved_micro: int
    left_micro: int | None
    refills_at: float | None


@dataclass(frozen=True)
class LedgerRow:
    """One settled attempt, as it stands in the ledger."""

    reservation_id: str
    request_id: str
    key: str
    team: str | None
    expert: str
    worst_micro: int
    charge: Charge
    settled_at: float


@dataclass(frozen=True)
class Spending:
    """Sums over the ledger for one key, expert or hour (its beginning in UTC, as 2026-01-31T13:00Z)."""

    name: str
    micro_usd: int
    lost_micro_usd: int
    attempts: int
    answered: int
    input: int
    cached: int
    cache_write: int
    output: int
    reasoning: int
    latency_s: float
    """mean of the attempts"""


@dataclass(frozen=True)
class OutcomeSums:
    """Sums over the attempts at one expert that ended in one way."""

    expert: str
    outcome: str
    attempts: int
    micro_usd: int
    lost_micro_usd: int
    latency_s: float
    """of all attempts together"""


def micro_of(usd: float) -> int:
    """The whole micro-dollars that a cost in dollars is charged with: rounded up, but for the errors of floats."""
    return math.ceil(usd * 1e6 - 1e-6)


def _check(name: str, value: int, most: int) -> None:
    if not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{name}: {value!r} is not a whole number from 0 to {most}")
