"""Several processes on one store, killed at any moment: nothing is overdrawn, lost or paid twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from agents.server.money import Charge, Ledger, Refused

MICRO_USD = 2_500  # a call
WORST_MICRO = 3_000


def fork(work: Callable[[], object]) -> int:
    """Does `work` in a copy of this process, in which no ledger may be open; returns the copy's number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def made(url: str, usd: float | None) -> int:
    """Makes a key; returns its number."""
    ledger = Ledger.open(url)
    ledger.add_key("a", usd)
    (key,) = ledger.keys()
    ledger.close()
    return key.key_id


async def ask(ledger: Ledger, key_id: int, upstream: int) -> bool:
    """One call, which the upstream bills by a line in a file; False if it was refused."""
    try:
        name = await ledger.reserve(key_id, "r", "e", WORST_MICRO, 60)
    except Refused:
        return False
    os.write(upstream, f"{name}\n".encode())
    await ledger.settle(name, Charge(MICRO_USD))
    return True


def test_two_processes_do_not_overdraw_a_dollar(ledger_url: str, tmp_path: Path):
    key_id = made(ledger_url, 1.0)
    upstream = os.open(tmp_path / "billed", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def work() -> None:
        ledger = Ledger.open(ledger_url)

        async def all_at_once() -> None:
            while any(await asyncio.gather(*(ask(ledger, key_id, upstream) for _ in range(250)))):
                pass  # costs are below the worst case, so that more may fit in

        asyncio.run(all_at_once())
        ledger.close()

    children = [fork(work) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    billed = (tmp_path / "billed").read_text().split()
    ledger = Ledger.open(ledger_url)
    _, account = ledger.accounts()
    assert account.spent_micro == len(billed) * MICRO_USD <= 1_000_000
    assert account.reserved_micro == 0
    assert 1_000_000 - account.spent_micro < WORST_MICRO
    assert Counter(row.reservation_id for row in ledger.recent(10_000)) == Counter(billed)
    ledger.close()


def books_are_right(url: str, billed: list[str], most_expired: int) -> None:
    """All that was billed is in the ledger once, at its cost or its worst case, and the counters are its sums."""
    ledger = Ledger.open(url)
    ledger.recover(time.time() + 1000)
    rows = ledger.recent(100_000)
    names = Counter(row.reservation_id for row in rows)
    assert not names or max(names.values()) == 1
    assert set(billed) <= set(names) and len(billed) == len(set(billed))
    expired = [row for row in rows if row.charge.outcome == "expired"]
    assert all(row.charge.micro_usd == WORST_MICRO for row in expired)
    assert all(row.charge == Charge(MICRO_USD) for row in rows if row not in expired)
    assert len(expired) <= most_expired
    for account in ledger.accounts():
        assert account.spent_micro == sum(row.charge.micro_usd for row in rows)
        assert account.reserved_micro == 0
    ledger.close()


def test_killed_before_each_statement_of_a_reservation_and_a_settlement(ledger_url: str, tmp_path: Path):
    key_id = made(ledger_url, None)
    upstream = os.open(tmp_path / "billed", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def work(number: int) -> None:
        ledger = Ledger.open(ledger_url)
        left = number

        def count(*_: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
            event.listen(Engine, name, count)
        asyncio.run(ask(ledger, key_id, upstream))
        ledger.close()

    killed = 0
    while True:
        _, status = os.waitpid(fork(partial(work, killed + 1)), 0)
        if not os.WIFSIGNALED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
    assert os.waitstatus_to_exitcode(status) == 0 and killed > 15
    books_are_right(ledger_url, (tmp_path / "billed").read_text().split(), killed)


def test_killed_at_any_moment_under_load(ledger_url: str, tmp_path: Path):
    key_id = made(ledger_url, None)
    upstream = os.open(tmp_path / "billed", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    beside, kills = 8, 16

    def work() -> None:
        ledger = Ledger.open(ledger_url)

        async def forever() -> None:
            while True:
                await ask(ledger, key_id, upstream)

        async def all_at_once() -> None:
            await asyncio.gather(*(forever() for _ in range(beside)))

        asyncio.run(all_at_once())

    for _ in range(kills // 2):
        children = [fork(work) for _ in range(2)]
        time.sleep(random.uniform(0.05, 0.15))
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    billed = (tmp_path / "billed").read_text().split()
    assert len(billed) > 2 * beside
    books_are_right(ledger_url, billed, kills * beside)


@pytest.mark.parametrize("processes", [3])
def test_only_one_of_several_processes_recovers_a_reservation(ledger_url: str, processes: int, tmp_path: Path):
    key_id = made(ledger_url, None)
    ledger = Ledger.open(ledger_url)

    async def reserve() -> None:
        await asyncio.gather(*(ledger.reserve(key_id, "r", "e", WORST_MICRO, 0) for _ in range(700)))

    asyncio.run(reserve())
    ledger.close()

    def work(number: int) -> None:
        ledger = Ledger.open(ledger_url)
        (tmp_path / str(number)).write_text(str(ledger.recover(time.time() + 1)))
        ledger.close()

    children = [fork(partial(work, number)) for number in range(processes)]
    assert all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)
    assert sum(int((tmp_path / str(number)).read_text()) for number in range(processes)) == 700
    books_are_right(ledger_url, [], 700)
