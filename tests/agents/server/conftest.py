"""Stores to test with: SQLite in a file, and a real PostgreSQL where the operating system has one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.server.money import Ledger
from tests.agents.server.postgres import Postgres, find_binaries


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server that tests share; each makes stores of its own."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL's server: apt install postgresql")
    server = Postgres(binaries)
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/leeroo.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_store()


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger.open(ledger_url)
    yield ledger
    ledger.close()
