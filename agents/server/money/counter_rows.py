"""Counters to and from their table."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, Row, bindparam, update

from agents.server.money.counter import Counter
from agents.server.money.schema import counters

STATE = (
    "limit_micro",
    "per",
    "extra_micro",
    "period_start",
    "spent_micro",
    "reserved_micro",
    "queries",
    "queries_before",
)
_save = (
    update(counters)
    .where(counters.c.id == bindparam("counter_id"))
    .values({name: bindparam(f"new_{name}") for name in STATE})
)


def counter_of(row: Row) -> Counter:
    """A counter from a row that begins with the table's columns."""
    return Counter(*row[: len(counters.c)])


def save_counters(connection: Connection, changed: Iterable[Counter]) -> None:
    """Writes all that may change of some counters."""
    rows = [{"counter_id": one.counter_id} | {f"new_{name}": getattr(one, name) for name in STATE} for one in changed]
    if rows:
        connection.execute(_save, rows)
