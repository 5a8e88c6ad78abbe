"""What reports say of the data: a learning curve on val alone, near duplicates, and what large tables are fitted by."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from agents.estimators.ensemble import fit_predictor
from agents.evaluation.data import data_lines, learning_curve
from leeroo_env import ExpertTable
from tests.conftest import random_table
from tests.synthetic import synthetic_table

BUDGETS_USD = [1e-4, 5e-4, 2e-3]


@pytest.fixture(scope="module")
def table() -> ExpertTable:
    return synthetic_table(1200)


def test_the_curve_is_the_same_again_and_never_looks_at_test(table: ExpertTable):
    predictor = fit_predictor(table)
    curve = learning_curve(table, predictor, BUDGETS_USD, 0)
    assert curve is not None and len(curve.score) == 4 and curve.queries[-1] == len(table.rows("train"))
    test = table.split == 2
    scores, embeddings = table.scores.clone(), table.embeddings.clone()
    scores[test], embeddings[test] = 1 - scores[test], -embeddings[test]
    other = replace(table, scores=scores, embeddings=embeddings)
    assert learning_curve(other, predictor, BUDGETS_USD, 0) == curve
    assert curve.score[-1] >= curve.score[0] - 0.02


def test_too_few_queries_for_a_curve():
    table = random_table(n=60)
    assert learning_curve(table, fit_predictor(table), BUDGETS_USD, 0) is None
    assert data_lines(table, fit_predictor(table), BUDGETS_USD, 1, 0) == []


def test_near_duplicates_are_counted_and_those_in_another_split(table: ExpertTable):
    embeddings, (train, val) = table.embeddings.clone(), (table.rows(name) for name in ("train", "val"))
    embeddings[train[1]], embeddings[val[:2]] = embeddings[train[0]], embeddings[train[2:4]]
    twice = replace(table, embeddings=embeddings)
    text = "\n".join(data_lines(twice, fit_predictor(twice), BUDGETS_USD, 1, 0))
    known = len(table) - len(table.first_alike.unique())  # the synthetic table has some itself
    assert f"{known + 3} of 1,200 queries are nearly the same" in text and "2 of them in another split" in text


def test_large_tables_say_what_they_were_fitted_by(monkeypatch: pytest.MonkeyPatch):
    for module in ("estimators.ridge_pca", "estimators.knn", "estimators.mlp", "estimators.base", "evaluation.data"):
        monkeypatch.setattr(f"agents.{module}.MAX_EXACT", 100)
    monkeypatch.setattr("agents.estimators.ridge.CENTRES", 64)
    table = random_table(n=600)
    text = "\n".join(data_lines(table, fit_predictor(table), BUDGETS_USD, 4, 0))
    assert "200 training queries in place of 100" in text
    assert "fitted to all 200 training queries: kernel ridge on 64 centres" in text


def test_estimates_of_near_duplicates_do_not_help_each_other(monkeypatch: pytest.MonkeyPatch):
    """Two training queries that are the same: what changes for one changes hardly anything for the other."""
    table = random_table(n=300)
    embeddings, (one, other) = table.embeddings.clone(), table.rows("train")[[4, 40]].tolist()
    embeddings[other] = embeddings[one]
    scores = table.scores.clone()
    scores[other] = 1 - scores[other].round()

    def moved() -> float:
        both = (replace(table, embeddings=embeddings, scores=given) for given in (table.scores, scores))
        before, after = (fit_predictor(each).out_of_fold.score for each in both)
        return float((after - before)[table.rows("train") == one].abs().max())

    together = moved()
    monkeypatch.setattr(ExpertTable, "first_alike", property(lambda table: torch.arange(len(table))))
    assert together < 0.05 < 0.1 < moved()
