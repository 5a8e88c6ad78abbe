"""The index of many references finds what a search of all finds, and never a query itself or its near duplicates."""

from __future__ import annotations

import pytest
import torch

from agents.estimators import cells, knn
from agents.estimators.knn import fit_neighbours, knn_estimates
from tests.conftest import random_table

pytest.importorskip("faiss", reason="the extra faiss is not installed")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "MAX_EXACT", 60)
    monkeypatch.setattr("agents.estimators.base.MAX_EXACT", 60)
    monkeypatch.setattr(cells, "REFERENCES", 20)


def test_it_finds_what_a_search_of_all_finds(monkeypatch: pytest.MonkeyPatch):
    table = random_table(n=300)
    monkeypatch.setattr(cells, "SEARCHED", 10)  # all there are
    found, _ = fit_neighbours(table, table.rows("train"))
    assert found.cells is not None and len(found.cells) == 5
    by_index = knn_estimates(table).joint()
    monkeypatch.setattr(cells, "_faiss", lambda: None)
    torch.testing.assert_close(by_index, knn_estimates(table).joint(), atol=2e-3, rtol=0.02)


def test_few_cells_are_nearly_as_good(monkeypatch: pytest.MonkeyPatch):
    table = random_table(n=600)
    monkeypatch.setattr(cells, "SEARCHED", 4)
    found, _ = fit_neighbours(table, table.rows("train"))
    units = torch.nn.functional.normalize(table.embeddings[:50].float(), dim=1)
    cosine, _ = found.nearest(units)
    best = (units @ found.references.float().T).amax(dim=1)
    assert float((cosine > best - 1e-3).float().mean()) > 0.8
