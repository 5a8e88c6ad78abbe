"""What cannot be stored of one request costs neither the others their records nor anyone an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import sqlalchemy as sa

from agents.server.journal import Decision, Journal, conversations, decisions
from agents.server.money import Ledger

UNSTORABLE = "no\0name\ud800"  # neither by PostgreSQL nor by SQLite


def decision(name: str, expert: str = "large") -> Decision:
    return Decision(name, 1, time.time(), expert, 1, 5, 9, 0.1, "because", {"large": [0.5, 0.1]}, 200)


def stored(ledger: Ledger, column: sa.Column) -> Sequence[str]:
    return ledger.run(lambda connection: connection.scalars(sa.select(column).order_by(column)).all(), False)


def test_a_row_that_cannot_be_stored_is_not_the_loss_of_its_batch(ledger: Ledger):
    async def write() -> None:
        journal = Journal(ledger)
        await journal.begin()
        journal.add(decision("a"))
        journal.add(decision("b", UNSTORABLE))
        journal.add(decision("c", "x" * 300))
        journal.remember("one", "large")
        journal.remember("two", UNSTORABLE)
        journal.remember("three", "x" * 300)
        await asyncio.sleep(0.5)
        journal.add(decision("d"))  # later ones are written as well
        assert await journal.rate("d", 1, 1.0) and not await journal.rate("b", 1, 1.0)
        await journal.close()

    asyncio.run(write())
    assert stored(ledger, decisions.c.id) == ["a", "c", "d"]
    assert stored(ledger, conversations.c.id) == ["one"]


def test_two_workers_may_write_of_one_conversation_at_once(ledger: Ledger, ledger_url: str):
    async def write(own: Ledger, name: str) -> None:
        journal = Journal(own)
        await journal.begin()
        for number in range(20):
            journal.add(decision(f"{name}{number}"))
            for conversation in range(20):
                journal.remember(f"conversation {(number + conversation) % 25}", name)
            await journal._flush()
        await journal.close()

    other = Ledger.open(ledger_url)

    async def both() -> None:
        await asyncio.gather(write(ledger, "a"), write(other, "b"))

    try:
        asyncio.run(both())
        assert len(stored(ledger, decisions.c.id)) == 40 and len(stored(ledger, conversations.c.id)) == 25
    finally:
        other.close()
