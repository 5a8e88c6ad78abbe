"""A store that is away: nothing is reserved, no cost is forgotten, and all goes on when it is back."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from agents.server.money import Charge, Ledger, Refused, StoreUnavailable, store
from leeroo_env.errors import InputError
from tests.agents.server.postgres import Postgres


async def until_settled(ledger: Ledger) -> None:
    deadline = time.monotonic() + 10
    while ledger.unsettled and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert not ledger.unsettled


def spent(ledger: Ledger) -> tuple[int, int]:
    _, account = ledger.accounts()
    return account.spent_micro, account.reserved_micro


async def refuses_while_away(ledger: Ledger, secret: str, key_id: int, reservation: str) -> None:
    """The store is away: a known key is still known, but nothing can be spent."""
    info = await ledger.authenticate(secret)
    assert info is not None and info.key_id == key_id
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await ledger.reserve(key_id, "r", "e", 100, 60)
    with pytest.raises(StoreUnavailable):
        await ledger.budget(key_id)
    assert await ledger.settle(reservation, Charge(70))
    assert not await ledger.settle(reservation, Charge(71))
    assert ledger.unsettled == 1


def test_postgresql_stops_and_comes_back(postgres: Postgres):
    ledger = Ledger.open(postgres.new_store())
    secret = ledger.add_key("a", 1.0)

    async def work() -> None:
        info = await ledger.authenticate(secret)
        assert info is not None
        reservation = await ledger.reserve(info.key_id, "r", "e", 100, 60)
        postgres.stop("immediate")
        try:
            await refuses_while_away(ledger, secret, info.key_id, reservation)
        finally:
            postgres.start()
        await until_settled(ledger)
        assert spent(ledger) == (70, 0)
        await ledger.settle(await ledger.reserve(info.key_id, "r", "e", 100, 60), Charge(5))
        assert spent(ledger) == (75, 0)

    asyncio.run(work())
    ledger.close()


def test_a_restart_between_two_calls_is_not_noticed(postgres: Postgres):
    ledger = Ledger.open(postgres.new_store())
    ledger.add_key("a", 1.0)
    key_id = ledger.keys()[0].key_id

    async def work() -> None:
        reservation = await ledger.reserve(key_id, "r", "e", 100, 60)
        postgres.stop()
        postgres.start()
        assert await ledger.settle(reservation, Charge(70)) and not ledger.unsettled

    asyncio.run(work())
    assert spent(ledger) == (70, 0)
    ledger.close()


def test_sqlite_locked_by_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "WAIT_S", 0.2)
    ledger = Ledger.open(f"sqlite:///{tmp_path}/leeroo.db")
    secret = ledger.add_key("a", 1.0)
    other = sqlite3.connect(tmp_path / "leeroo.db", isolation_level=None)

    async def work() -> None:
        info = await ledger.authenticate(secret)
        assert info is not None
        reservation = await ledger.reserve(info.key_id, "r", "e", 100, 60)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="locked"):
                await ledger.reserve(info.key_id, "r", "e", 100, 60)
        with pytest.raises(StoreUnavailable, match="locked"):
            await asyncio.to_thread(ledger.check)
        assert (await ledger.budget(info.key_id)).left_micro == 999_900  # who reads need not wait
        assert await ledger.settle(reservation, Charge(70)) and ledger.unsettled == 1
        other.execute("COMMIT")
        await until_settled(ledger)

    asyncio.run(work())
    assert spent(ledger) == (70, 0)
    ledger.close()
    other.close()


def test_what_the_process_cannot_settle_before_it_ends_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "WAIT_S", 0.1)
    url = f"sqlite:///{tmp_path}/leeroo.db"
    ledger = Ledger.open(url)
    ledger.add_key("a", 1.0)
    reservation = asyncio.run(ledger.reserve(ledger.keys()[0].key_id, "r", "e", 100, 60))
    other = sqlite3.connect(tmp_path / "leeroo.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert asyncio.run(ledger.settle(reservation, Charge(70)))
    ledger.close()
    other.close()
    ledger = Ledger.open(url)
    assert spent(ledger) == (0, 100)
    assert ledger.recover(time.time() + 61) == 1
    assert spent(ledger) == (100, 0)
    ledger.close()


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_whose_outcome_is_unknown(ledger_url: str, committed: bool, monkeypatch: pytest.MonkeyPatch):
    """The connection breaks while the store commits: the reservation is taken back, the cost counts once."""
    ledger = Ledger.open(ledger_url)
    ledger.add_key("a", 0.001)
    key_id = ledger.keys()[0].key_id
    dialect = ledger._writer._store._engine.dialect
    commit, failures = dialect.do_commit, iter([True])

    def breaks(connection: Any) -> None:
        if next(failures, False):
            if committed:
                commit(connection)
            raise dialect.loaded_dbapi.OperationalError("the connection is lost")
        commit(connection)

    async def work() -> None:
        nonlocal failures
        failures = iter([True])
        monkeypatch.setattr(dialect, "do_commit", breaks)
        with pytest.raises(StoreUnavailable):
            await ledger.reserve(key_id, "r", "e", 1000, 60)
        await until_settled(ledger)
        reservation = await ledger.reserve(key_id, "r", "e", 1000, 60)  # all of it
        failures = iter([True])
        assert await ledger.settle(reservation, Charge(700))
        await until_settled(ledger)
        with pytest.raises(Refused):
            await ledger.reserve(key_id, "r", "e", 301, 60)

    asyncio.run(work())
    assert spent(ledger) == (700, 0)
    assert [row.charge.micro_usd for row in ledger.recent() if row.charge.outcome == "answered"] == [700]
    ledger.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "'' is no database; write sqlite:///FILE or postgresql://"),
        ("leeroo.db", "'leeroo.db' is no database"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("sqlite://leeroo.db", "name a file"),
        ("mysql://user:geheim@host/x", "not in mysql"),
        ("postgresql://host:port/x", "is no database"),
        ("sqlite:////nowhere/at/all/leeroo.db", "unable to open database file"),
        ("sqlite:////", "unable to open database file"),
    ],
)
def test_a_url_that_cannot_be_one(url: str, message: str):
    with pytest.raises(InputError, match=message) as error:
        Ledger.open(url)
    assert "\n" not in str(error.value) and "geheim" not in str(error.value)


def test_files_that_are_no_ledger(tmp_path: Path):
    path = tmp_path / "leeroo.db"
    url = f"sqlite:///{path}"
    with pytest.raises(InputError, match="no such file"):
        Ledger.open(url, must_exist=True)
    assert not path.exists()
    path.write_text("not a database, but a text that is long enough to be looked at\n" * 10)
    with pytest.raises(InputError, match="not a database"):
        Ledger.open(url)
    path.unlink()
    Ledger.open(url).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    connection.close()
    with pytest.raises(InputError, match="version 99 of its tables; this program knows version 1"):
        Ledger.open(url)


def test_a_server_that_is_not_there_names_no_password():
    with pytest.raises(StoreUnavailable, match="refused") as error:
        Ledger.open("postgresql://user:geheim@127.0.0.1:1/x")
    assert "geheim" not in str(error.value)
