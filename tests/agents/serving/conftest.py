"""A part of the built-in table, on which policies are tried with the experts that it was collected from."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from agents import Orchestrator
from agents.serving.breaker import CircuitBreaker
from leeroo_env import ExpertTable
from tests.agents.serving.orchestrators import rated_orchestrator

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def tiny() -> ExpertTable:
    """Part of the table that the pool was asked for."""
    table = ExpertTable.load(ROOT / "leeroo_env" / "builtin" / "tiny")
    rows = torch.cat([table.rows("train")[:300], table.rows("val")[:60], table.rows("test")[:120]])
    queries = table.queries.take(pa.array(rows.numpy()))
    answers = table.answers.filter(pc.is_in(table.answers["query_id"], queries["query_id"].combine_chunks()))
    return ExpertTable.from_arrow(table.info, queries, answers, table.embeddings[rows].numpy())


@pytest.fixture(scope="package")
def rated_for_all() -> Orchestrator:
    return rated_orchestrator()


@pytest.fixture
def rated(rated_for_all: Orchestrator, monkeypatch: pytest.MonkeyPatch) -> Orchestrator:
    """Asks one expert a query, gamma where the budget allows it; remembers no failures of other tests."""
    monkeypatch.setattr(rated_for_all, "breaker", CircuitBreaker())
    return rated_for_all
