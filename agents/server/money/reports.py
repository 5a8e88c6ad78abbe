"""What the ledger tells: sums by key, expert or hour, the last rows, and how full every limit is."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, literal, select

from agents.server.money.counter import Counter
from agents.server.money.schema import counters, ledger
from agents.server.money.types import Account, By, Charge, LedgerRow, OutcomeSums, Spending

_teams = counters.alias("teams")


def spending(connection: Connection, since: float, by: By) -> list[Spending]:
    """Sums of what was settled from `since` on: hours in their order, keys and experts from the dearest."""
    columns: dict[By, ColumnElement[Any]] = {
        "key": counters.c.name,
        "expert": ledger.c.expert,
        "hour": ledger.c.settled_hour,
    }
    group = columns[by]
    sums = ("micro_usd", "lost_micro_usd", "input", "cached", "cache_write", "output", "reasoning")
    query = (
        select(
            group.label("name"),
            func.count().label("attempts"),
            func.sum(case((ledger.c.outcome == "answered", 1), else_=0)).label("answered"),
            func.avg(ledger.c.latency_s).label("latency_s"),
            *(func.sum(ledger.c[name]).label(name) for name in sums),
        )
        .join(counters, counters.c.id == ledger.c.key_id)
        .where(ledger.c.settled_at >= since)
        .group_by(group)
        .order_by(group if by == "hour" else func.sum(ledger.c.micro_usd).desc())
    )
    return [
        Spending(
            name=_hour(row.name) if by == "hour" else row.name,
            attempts=row.attempts,
            answered=int(row.answered),
            latency_s=float(row.latency_s),
            **{name: int(getattr(row, name)) for name in sums},
        )
        for row in connection.execute(query)
    ]


def recent(connection: Connection, n: int) -> list[LedgerRow]:
    """The last `n` rows, newest first."""
    query = (
        select(ledger, counters.c.name.label("key"), _teams.c.name.label("team"))
        .join(counters, counters.c.id == ledger.c.key_id)
        .outerjoin(_teams, (_teams.c.id == counters.c.parent_id) & (_teams.c.scope == "team"))
        .order_by(ledger.c.id.desc())
        .limit(n)
    )
    same = ("reservation_id", "request_id", "key", "team", "expert", "worst_micro", "settled_at")
    return [
        LedgerRow(
            charge=Charge(**{name: getattr(row, name) for name in Charge.__dataclass_fields__}),
            **{name: getattr(row, name) for name in same},
        )
        for row in connection.execute(query)
    ]


def by_outcome(connection: Connection, since: float) -> list[OutcomeSums]:
    """Sums of what was settled from `since` on, by expert and outcome."""
    sums = (func.sum(ledger.c[name]) for name in ("micro_usd", "lost_micro_usd", "latency_s"))
    query = select(ledger.c.expert, ledger.c.outcome, func.count(), *sums).where(ledger.c.settled_at >= since)
    found = connection.execute(query.group_by(ledger.c.expert, ledger.c.outcome)).all()
    return [
        OutcomeSums(expert, outcome, n, int(micro), int(lost), float(latency_s))
        for expert, outcome, n, micro, lost, latency_s in found
    ]


def over_time(connection: Connection, starts: list[float]) -> list[tuple[int, str, int]]:
    """Micro-dollars by the number of the interval and by expert.

    Args:
        starts: Unix seconds at which intervals begin, each until the next; the last one is open.
    """
    if all(start % 3600 == 0 for start in starts):
        number: ColumnElement[Any] = ledger.c.settled_hour - int(starts[0] // 3600)
    else:  # floor is no function of every SQLite, and casts round in PostgreSQL
        later = [case((ledger.c.settled_at >= start, 1), else_=0) for start in starts[1:]]
        number = sum(later, literal(0))
    named = select(number.label("number"), ledger.c.expert, ledger.c.micro_usd)
    spent = named.where(ledger.c.settled_at >= starts[0]).subquery().c
    query = select(spent.number, spent.expert, func.sum(spent.micro_usd)).group_by(spent.number, spent.expert)
    return [(int(row[0]), row[1], int(row[2])) for row in connection.execute(query)]


def account_of(counter: Counter) -> Account:
    """How full a limit is."""
    return Account(
        scope=counter.scope,
        name=counter.name,
        micro_usd=counter.whole_micro,
        per=counter.per,
        spent_micro=counter.spent_micro,
        reserved_micro=counter.reserved_micro,
        left_micro=counter.left_micro,
        refills_at=counter.refills_at,
    )


def _hour(number: int) -> str:
    return datetime.fromtimestamp(number * 3600, timezone.utc).strftime("%Y-%m-%dT%H:%MZ")
