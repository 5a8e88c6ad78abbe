"""The report says what the numbers say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agents.estimators import Estimates
from agents.evaluation.evaluate import evaluate, lead
from agents.evaluation.report import compare, write_report
from agents.routers import Cheapest, Planned, Random
from leeroo_env import ExpertTable, dynamics
from tests.conftest import random_table
from tests.synthetic import synthetic_table


def report_of(table: ExpertTable, agent, tmp_path: Path, horizon: int = 32) -> str:
    estimates = Estimates(table.scores, table.costs_usd)
    rules = dynamics.make_rules(table, "test", horizon)
    routers = {"agent": agent, "cheapest": Cheapest(table)}
    write_report(tmp_path, rules, "test", 0, routers, compare(routers, rules, 0), estimates, "the last word")
    return (tmp_path / "report.md").read_text()


def test_in_plain_words_what_the_money_buys(tmp_path: Path):
    """With the truth for estimates all that `large` answers is answered, for a third of its price."""
    table = synthetic_table()
    text = report_of(table, Planned(table, Estimates(table.scores, table.costs_usd)), tmp_path)
    assert "**It matches large, the best expert, at" in text
    share = float(text.split("**It matches large, the best expert, at ")[1].split(" %")[0])
    assert 30 < share < 45, "half of the queries cost .1, a quarter .2 and a quarter 1 of its price: .35"
    assert "| large | 1.000 | 0.001 | matched at" in text and "matched already" in text
    assert "the last word" in text and "| 8 |" in text and "| 256 |" in text
    assert "By domain, over all budgets:" in text and "| expert | code | easy | hard |" in text


def test_an_expert_that_is_not_matched_is_said_to_be_so(tmp_path: Path):
    table = synthetic_table()
    text = report_of(table, Cheapest(table), tmp_path)
    assert "It never matches large, the best expert, but reaches" in text
    assert "| large | 1.000 | 0.001 | not matched; " in text


@pytest.mark.parametrize("k", [1, 2])
def test_few_experts_and_equal_prices_make_a_report(k: int, tmp_path: Path):
    table = random_table(n=120, k=k)
    object.__setattr__(table, "costs_usd", torch.ones(120, k))
    assert "| prediction regret |" in report_of(table, Cheapest(table), tmp_path, horizon=10)


def test_a_lead_is_that_on_the_same_queries():
    table = random_table(n=300)
    rules = dynamics.make_rules(table, "test", 20)
    budgets = dynamics.budget_grid(rules)
    one, other = (evaluate(router, rules, budgets, 50) for router in (Random(table), Cheapest(table)))
    gain, stderr, mean, mean_stderr = lead(one, other)
    np.testing.assert_allclose(gain, one.score - other.score)
    assert mean == pytest.approx(one.mean_score - other.mean_score)
    assert lead(one, one)[1:] == (pytest.approx(np.zeros(6)), 0, 0)
    assert 0 < mean_stderr < np.sqrt(one.stderr.mean() ** 2 + other.stderr.mean() ** 2) * 1.5 and (stderr > 0).all()
