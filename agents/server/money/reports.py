"""What the ledger tells: sums by key, expert or hour, the last rows, and how full every limit is."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, select

from agents.server.money.counter import Counter
from agents.server.money.schema import counters, ledger
from agents.server.money.types import Account, By, Charge, LedgerRow, Spending

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
