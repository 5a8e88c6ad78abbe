"""Stores to test with, SQLite in a file and a real PostgreSQL where there is one, and a server in front of a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from agents.server.money import Ledger
from leeroo_env import ExpertTable
from leeroo_env.builtin import resolve
from tests.agents.server.postgres import Postgres, find_binaries
from tests.agents.server.running import Running, serving, table_experts, write_pool
from tests.agents.serving.orchestrators import orchestrator_of


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


@pytest.fixture(scope="session")
def dear_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Part of the built-in table at ten thousand times its prices, so that micro-dollars are small beside them."""
    table = resolve("tiny")
    rows = torch.cat([table.rows("train")[:400], table.rows("val")[:60], table.rows("test")[:400]])
    queries = table.queries.take(pa.array(rows.numpy()))
    answers = table.answers.filter(pc.is_in(table.answers["query_id"], queries["query_id"].combine_chunks()))
    dear = pc.round(pc.multiply(answers["cost_usd"], 1e4), ndigits=6)
    answers = answers.set_column(answers.column_names.index("cost_usd"), "cost_usd", dear)
    path = tmp_path_factory.mktemp("tables") / "dear"
    ExpertTable.from_arrow(table.info, queries, answers, table.embeddings[rows].numpy()).save(path)
    return path


@pytest.fixture(scope="session")
def run_dir(dear_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of one call on that table, as training begins with it."""
    path = tmp_path_factory.mktemp("runs") / "one"
    orchestrator_of(ExpertTable.load(dear_tiny), horizon=64).save(path)
    return path


@pytest.fixture(scope="session")
def several_run_dir(dear_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of up to three calls."""
    path = tmp_path_factory.mktemp("runs") / "several"
    orchestrator_of(ExpertTable.load(dear_tiny), max_calls=3, horizon=64).save(path)
    return path


@pytest.fixture(scope="session")
def experts_url(dear_tiny: Path) -> Iterator[str]:
    with table_experts(dear_tiny) as url:
        yield url


@pytest.fixture(scope="session")
def pool(dear_tiny: Path, experts_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table-backed experts, of which `large` takes tools."""
    names = list(ExpertTable.load(dear_tiny).experts)
    path = tmp_path_factory.mktemp("pool") / "pool.yaml"
    return write_pool(path, names, experts_url, large={"can": ["tools", "json"]}, nano={"context": 200})


@pytest.fixture(scope="session")
def server(run_dir: Path, pool: Path, experts_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for many tests, each with keys of its own."""
    directory = tmp_path_factory.mktemp("server")
    with serving(run_dir, pool, f"sqlite:///{directory}/leeroo.db", directory, experts_url) as running:
        yield running
