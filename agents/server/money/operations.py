"""Does a group of operations in one transaction: reads counters once, decides in memory, writes what has changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from sqlalchemy import BindParameter, Connection, Row, bindparam, delete, insert, or_, select

from agents.server.money.counter import Counter, budget_of
from agents.server.money.counter_rows import counter_of, save_counters
from agents.server.money.keys import find_key
from agents.server.money.rate import Admissions
from agents.server.money.schema import SERVER_ID, counters, keys, ledger, reservations
from agents.server.money.types import Budget, Charge, KeyInfo, Refused

MOST_RECOVERED = 500  # in one transaction, so that others need not wait long


@dataclass(frozen=True)
class Reserve:
    """Reserves a call's worst case on every counter, or on none: then the result is Refused.

    `first`: whether the call is the first of its query, which counts queries.
    """

    reservation_id: str
    key_id: int
    request_id: str
    expert: str
    worst_micro: int
    ttl_s: float
    first: bool


@dataclass(frozen=True)
class Settle:
    """Replaces a reservation by what the call came to; False if there is none, as it was settled before."""

    reservation_id: str
    charge: Charge


@dataclass(frozen=True)
class Recover:
    """Settles up to MOST_RECOVERED reservations that had expired by `now`, at their worst case; their number."""

    now: float


@dataclass(frozen=True)
class Admit:
    """Counts a request against the key's rate: None, or the seconds until it would be admitted."""

    key_id: int


@dataclass(frozen=True)
class AskBudget:
    """What the key can spend: Budget."""

    key_id: int


@dataclass(frozen=True)
class Authenticate:
    """Whose secret has this hash: KeyInfo or None."""

    sha256: str


Operation = Reserve | Settle | Recover | Admit | AskBudget | Authenticate
Result = bool | int | float | Budget | KeyInfo | Refused | None


@dataclass(frozen=True)
class _Reservation:
    """A row of the table of reservations."""

    id: str
    key_id: int
    request_id: str
    expert: str
    worst_micro: int
    expires_at: float


# Built once: to build a statement takes longer than to execute it.
_NUMBERS: BindParameter[int] = bindparam("numbers", expanding=True)
_parents = select(counters.c.parent_id).where(counters.c.id.in_(_NUMBERS))
_load_counters = (
    select(counters, keys.c.revoked_at, keys.c.requests_per_minute)
    .outerjoin(keys, keys.c.counter_id == counters.c.id)
    .where(or_(counters.c.id.in_(_NUMBERS), counters.c.id.in_(_parents), counters.c.id == SERVER_ID))
)
_take = delete(reservations).where(reservations.c.id.in_(bindparam("names", expanding=True))).returning(*reservations.c)
_expired = select(reservations.c.id).where(reservations.c.expires_at <= bindparam("latest")).limit(MOST_RECOVERED)
_take_expired = delete(reservations).where(reservations.c.id.in_(_expired)).returning(*reservations.c)
_add_reservations = insert(reservations)
_add_to_ledger = insert(ledger)


def writes(operation: Operation) -> bool:
    """Whether an operation changes anything."""
    return not isinstance(operation, AskBudget | Authenticate)


def apply_group(connection: Connection, operations: list[Operation], now: float) -> list[Result]:
    """The results of operations, done in their order. Whatever it raises, none is done if the transaction is undone."""
    group = _Group(connection, operations, now)
    results = [group.apply(operation) for operation in operations]
    if any(writes(operation) for operation in operations):  # else new periods have begun in memory only
        group.write()
    return results


class _Group:
    """What one transaction has read and will write."""

    def __init__(self, connection: Connection, operations: list[Operation], now: float):
        self.connection, self.now = connection, now
        self.to_settle = _find_to_settle(connection, operations)
        self.expired = _find_expired(connection, operations)
        self.reserved: dict[str, _Reservation] = {}
        self.ledger_rows: list[dict[str, object]] = []
        asked = {one.key_id for one in operations if isinstance(one, Reserve | Admit | AskBudget)}
        asked |= {one.key_id for one in [*self.to_settle.values(), *self.expired]}
        self.keys, self.counters = _load(connection, asked) if asked else ({}, {})
        self.before = {number: replace(counter) for number, counter in self.counters.items()}
        for counter in self.counters.values():
            counter.roll(now)
        admitted = {one.key_id for one in operations if isinstance(one, Admit)}
        self.admissions = Admissions(connection, {n: self.keys[n].requests_per_minute for n in admitted}, now)

    def apply(self, operation: Operation) -> Result:
        if isinstance(operation, Settle):
            return self._settle(operation)
        if isinstance(operation, Recover):
            expired, self.expired = self.expired, []
            for one in expired:
                self._charge(one, Charge(one.worst_micro, usage="assumed", outcome="expired"))
            return len(expired)
        if isinstance(operation, Reserve):
            return self._reserve(operation)
        if isinstance(operation, Admit):
            return self.admissions.admit(operation.key_id)
        if isinstance(operation, AskBudget):
            return budget_of(self._chain(operation.key_id), self.now)
        return find_key(self.connection, operation.sha256)

    def write(self) -> None:
        changed = [counter for number, counter in self.counters.items() if counter != self.before[number]]
        save_counters(self.connection, changed)
        if self.reserved:
            self.connection.execute(_add_reservations, [asdict(one) for one in self.reserved.values()])
        if self.ledger_rows:
            self.connection.execute(_add_to_ledger, self.ledger_rows)
        self.admissions.write()

    def _reserve(self, asked: Reserve) -> Refused | None:
        chain = self._chain(asked.key_id)
        if self.keys[asked.key_id].revoked_at is not None:
            return Refused(chain[0].title, 0, asked.worst_micro, revoked=True)
        for counter in chain:
            if counter.left_micro is not None and counter.left_micro < asked.worst_micro:
                return Refused(counter.title, counter.left_micro, asked.worst_micro)
        for counter in chain:
            counter.reserved_micro += asked.worst_micro
            counter.queries += asked.first
        self.reserved[asked.reservation_id] = _Reservation(
            asked.reservation_id,
            asked.key_id,
            asked.request_id,
            asked.expert,
            asked.worst_micro,
            self.now + asked.ttl_s,
        )
        return None

    def _settle(self, asked: Settle) -> bool:
        found = self.to_settle.pop(asked.reservation_id, None) or self.reserved.pop(asked.reservation_id, None)
        if found is not None:
            self._charge(found, asked.charge)
        return found is not None

    def _charge(self, one: _Reservation, charge: Charge) -> None:
        for counter in self._chain(one.key_id):
            counter.reserved_micro -= one.worst_micro
            counter.spent_micro += charge.micro_usd
            if counter.scope == "server":
                counter.spent_micro += charge.lost_micro_usd
        row = {name: value for name, value in asdict(one).items() if name not in ("id", "expires_at")}
        settled = {"reservation_id": one.id, "settled_at": self.now, "settled_hour": int(self.now // 3600)}
        self.ledger_rows.append(row | settled | asdict(charge))

    def _chain(self, key_id: int) -> list[Counter]:
        """The counters that a key spends from: its own, its team's if it has one, the server's."""
        chain: list[Counter] = []
        number: int | None = key_id
        while number is not None:
            chain.append(self.counters[number])
            number = chain[-1].parent_id
        return chain


def _find_to_settle(connection: Connection, operations: list[Operation]) -> dict[str, _Reservation]:
    """Takes the reservations that are to be settled out of the table."""
    names = [one.reservation_id for one in operations if isinstance(one, Settle)]
    if not names:
        return {}
    rows = connection.execute(_take, {"names": names})
    return {row.id: _Reservation(*row) for row in rows}


def _find_expired(connection: Connection, operations: list[Operation]) -> list[_Reservation]:
    """Takes reservations that have expired out of the table, if that is asked for."""
    latest = max((one.now for one in operations if isinstance(one, Recover)), default=None)
    if latest is None:
        return []
    return [_Reservation(*row) for row in connection.execute(_take_expired, {"latest": latest})]


def _load(connection: Connection, key_ids: set[int]) -> tuple[dict[int, Row], dict[int, Counter]]:
    """Keys by number, and the counters that they spend from. Raises KeyError for a number that no key has."""
    found = {row.id: row for row in connection.execute(_load_counters, {"numbers": list(key_ids)})}
    return {number: found[number] for number in key_ids}, {number: counter_of(row) for number, row in found.items()}
