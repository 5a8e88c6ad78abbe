"""Keys, limits and what was spent: worst cases are reserved before a call, real costs settled after it, each once."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection

from agents.server.money import keys as key_rows
from agents.server.money import reports
from agents.server.money.operations import (
    MOST_RECOVERED,
    Admit,
    AskBudget,
    Authenticate,
    Recover,
    Reserve,
    Settle,
)
from agents.server.money.store import Store
from agents.server.money.types import (
    MOST_MICRO,
    Account,
    Budget,
    By,
    Charge,
    KeyInfo,
    LedgerRow,
    Period,
    Refused,
    Spending,
    StoreUnavailable,
)
from agents.server.money.writer import Writer

KNOWN_S = 4.0  # a key that another process revoked is refused within five seconds
MOST_TEXT = 200  # characters of a name that a client sent


T = TypeVar("T")


class Ledger:
    """The store of keys, limits and costs, shared by all processes that open it.

    All methods raise StoreUnavailable where the store cannot be reached, `settle` excepted. Those that are not async
    block: in a server, they are for a thread (`asyncio.to_thread`).
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._writer = Writer(store, clock)
        self._store = store
        self._known: dict[str, tuple[KeyInfo, float]] = {}  # by hash; until when, on the monotonic clock
        self._unlimited: set[int] = set()  # keys without a rate, which no request needs to be counted for

    @classmethod
    def open(cls, url: str, must_exist: bool = False, clock: Callable[[], float] = time.time) -> Ledger:
        """Opens "sqlite:///FILE" or "postgresql://..." and makes the tables if there are none.

        Raises InputError for a URL that names no such store, or no file where one must exist.
        """
        return cls(Store(url, must_exist), clock)

    def close(self) -> None:
        """Does what is queued and disconnects."""
        self._writer.close()

    @property
    def unsettled(self) -> int:
        """Settlements that wait for the store to come back."""
        return self._writer.unsettled

    # Keys and limits. All raise InputError for names and amounts that cannot be.

    def add_key(
        self,
        name: str,
        usd: float | None = None,
        per: Period = "month",
        team: str | None = None,
        requests_per_minute: int | None = None,
    ) -> str:
        """Makes a key and returns its secret, of which only a hash is stored."""
        return self._writer.call(
            lambda connection: key_rows.add_key(connection, name, usd, per, team, requests_per_minute, self._clock())
        )

    def set_team(self, name: str, usd: float | None, per: Period = "month") -> None:
        """Makes a team, or changes the limit that its keys share; None: no limit."""
        self._writer.call(lambda connection: key_rows.set_team(connection, name, usd, per, self._clock()))

    def set_server_limit(self, usd: float | None, per: Period = "month") -> None:
        """Changes the limit of all keys together, which what is lost on failures counts against as well."""
        self._writer.call(lambda connection: key_rows.set_server_limit(connection, usd, per, self._clock()))

    def keys(self) -> list[KeyInfo]:
        """All keys, in the order in which they were made."""
        return self._read(key_rows.list_keys)

    def revoke(self, name: str) -> None:
        """Makes a key useless: here at once, in other processes it reserves nothing more and is refused within 5 s."""
        self._writer.call(lambda connection: key_rows.revoke(connection, name, self._clock()))
        self._known.clear()

    def top_up(self, name: str, usd: float) -> None:
        """Adds money to what a key may spend in the current period; in total, where its limit is a total."""
        self._writer.call(lambda connection: key_rows.top_up(connection, name, usd, self._clock()))

    # What a request needs.

    async def authenticate(self, secret: str) -> KeyInfo | None:
        """The key with this secret, or None if there is none or it is revoked."""
        if not key_rows.SECRET.fullmatch(secret):
            return None
        sha256 = key_rows.hash_of(secret)
        known = self._known.get(sha256)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        asked_at = time.monotonic()
        info: KeyInfo | None = await self._writer.submit(Authenticate(sha256))
        if info is None or info.revoked:
            self._known.pop(sha256, None)
            return None
        self._known[sha256] = info, asked_at + KNOWN_S
        if info.requests_per_minute is None:
            self._unlimited.add(info.key_id)
        return info

    async def admit(self, key_id: int) -> float | None:
        """Counts a request against the key's rate. None if it may come, else the seconds until it may."""
        if key_id in self._unlimited:
            return None
        wait_s: float | None = await self._writer.submit(Admit(key_id))
        return wait_s

    async def budget(self, key_id: int) -> Budget:
        """What the key can still spend, and what that must last for."""
        budget: Budget = await self._writer.submit(AskBudget(key_id))
        return budget

    async def reserve(
        self, key_id: int, request_id: str, expert: str, worst_micro: int, ttl_s: float, first: bool = True
    ) -> str:
        """Reserves a call's worst case on key, team and server, or on none of them; returns the reservation's id.

        If this is cancelled, nothing stays reserved.

        Args:
            ttl_s: after so many seconds, `recover` charges the worst case: longer than the call can take.
            first: whether this is the first call of its query; `Budget.queries_expected` counts queries.

        Raises: Refused where less is left, or the key is revoked; StoreUnavailable.
        """
        if not 0 <= worst_micro <= MOST_MICRO:
            raise ValueError(f"worst_micro: {worst_micro} is not an amount from 0 to {MOST_MICRO}")
        name = uuid.uuid4().hex
        operation = Reserve(name, key_id, _storable(request_id), _storable(expert), worst_micro, ttl_s, first)
        try:
            refused: Refused | None = await self._writer.submit(operation)
        except BaseException as error:
            if not isinstance(error, Exception) or getattr(error, "unclear", False):
                with contextlib.suppress(StoreUnavailable):  # closed meanwhile
                    self._writer.submit_unheard(Settle(name, Charge(0, outcome="cancelled")))
            raise
        if refused is not None:
            raise refused
        return name

    async def settle(self, reservation_id: str, charge: Charge) -> bool:
        """Replaces a reservation by the real cost, above the worst case or not. False if it was settled before.

        It is queued at once and done even if who waits for it is cancelled. While the store is away, the cost is kept
        and tried again (True is returned), until this process ends: then the reservation expires.
        """
        settled: bool = await self._writer.submit(Settle(reservation_id, charge))
        return settled

    def recover(self, now: float | None = None) -> int:
        """Settles reservations that have expired, whoever made them, at their worst case; returns their number."""
        now, recovered = self._clock() if now is None else now, 0
        while True:
            number = self._writer.do(Recover(now))
            recovered += number
            if number < MOST_RECOVERED:
                return recovered

    def run(self, function: Callable[[Connection], T], writes: bool = True) -> T:
        """The result of a function of a connection to the store, in a transaction of its own; not for an event loop."""
        return self._writer.call(function) if writes else self._read(function)

    def check(self) -> None:
        """Raises StoreUnavailable unless the store can be written to."""
        self._writer.call(lambda connection: None)

    # What was spent.

    def accounts(self) -> list[Account]:
        """How full every limit is: the server's, then teams' and keys' in the order in which they were made."""
        counters = self._read(lambda connection: key_rows.list_counters(connection, self._clock()))
        return [reports.account_of(counter) for counter in counters]

    def spending(self, since: float, by: By = "key") -> list[Spending]:
        """Sums over what was settled from `since` on."""
        return self._read(lambda connection: reports.spending(connection, since, by))

    def recent(self, n: int = 20) -> list[LedgerRow]:
        """The last `n` rows of the ledger, newest first."""
        return self._read(lambda connection: reports.recent(connection, n))

    def _read(self, function: Callable[[Connection], T]) -> T:
        with self._store.reading() as connection:
            return function(connection)


def _storable(text: str) -> str:
    """A client's text as every database takes it."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")[:MOST_TEXT]
