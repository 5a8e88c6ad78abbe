"""The budget value is what counting by hand gives."""

from __future__ import annotations

import pytest
import torch

from agents.estimators import Estimates
from agents.evaluation.bounds import hindsight_bound
from agents.policies.budget_value import N_QUERIES, BudgetValue, cost_ratios, fit_budget_value, solve_one_call
from agents.routers import Context, Planned
from leeroo_env import dynamics
from leeroo_env.builtin import resolve
from leeroo_env.cost_scale import CostScale
from tests.synthetic import synthetic_optimum, synthetic_table


def certain(score: list[float], cost_usd: list[float]) -> BudgetValue:
    """The budget value of queries that are all alike, with known costs."""
    estimates = Estimates(*(torch.tensor([x]).expand(50, -1) for x in (score, cost_usd)))
    mean = torch.tensor(cost_usd)
    return solve_one_call(estimates, torch.ones(1, len(score)), CostScale(mean, min(cost_usd), max(cost_usd)))


def worth(budget_value: BudgetValue, queries: int, usd: float) -> float:
    return float(budget_value.value_at(torch.tensor(float(queries)), torch.tensor(usd)))


def test_alike_queries_are_worth_what_the_money_buys():
    """A cheap expert for 1 dollar scores .2, an expensive one for 9 scores .6: each switch to it costs 8."""
    budget_value = certain([0.2, 0.6], [1.0, 9.0])
    for queries, usd, expected in ((1, 20.0, 0.6), (1, 5.0, 0.2), (10, 95.0, 6.0), (10, 50.4, 4.0), (10, 10.3, 2.0)):
        assert worth(budget_value, queries, usd) == pytest.approx(expected, abs=0.25), (queries, usd)
    assert worth(budget_value, 640, 9 * 640.0) == pytest.approx(384, rel=0.02), "more queries than it is computed for"
    assert worth(budget_value, 0, 5.0) == 0


def test_without_money_there_is_nothing_to_come_however_close_the_prices():
    """Were no money worth something, everything would be spent at once."""
    budget_value = certain([0.2, 0.6], [1.0, 1.5])
    assert worth(budget_value, 60, 0.0) == pytest.approx(0, abs=1e-9) and worth(budget_value, 60, 3.0) == pytest.approx(
        3 * 0.6 / 1.5, abs=0.3
    )
    assert worth(budget_value, 60, 60.0) == pytest.approx(60 * 0.6 / 1.5, rel=0.03)


def test_money_and_queries_are_never_worth_less():
    table = resolve("tiny")
    estimates = Estimates(table.scores, table.costs_usd)
    rows = table.rows("train")
    budget_value = fit_budget_value(table, rows, estimates[rows])
    assert bool((budget_value.value.diff(dim=1) >= -1e-5).all())
    assert bool((budget_value.value[1:, -1].diff() > 0).all()) and len(budget_value.value) == N_QUERIES + 1


def test_with_the_truth_it_expects_between_the_known_optimum_and_hindsight(monkeypatch: pytest.MonkeyPatch):
    """Running out at the end is better than keeping a reserve for it, but not as good as declining queries."""
    monkeypatch.setattr("agents.policies.budget_value.SAMPLE", 10_000)
    table = synthetic_table()
    rows = table.rows("train")
    budget_value = fit_budget_value(table, rows, Estimates(table.scores, table.costs_usd)[rows])
    rules = dynamics.make_rules(table, "train")
    budgets = dynamics.budget_grid(rules)
    for budget, bound in zip(budgets, hindsight_bound(rules, budgets, 256).score, strict=True):
        expected = worth(budget_value, N_QUERIES, N_QUERIES * budget) / N_QUERIES
        assert synthetic_optimum(budget) - 0.04 < expected < bound + 0.005


def test_a_call_that_may_not_fit_counts_for_less():
    budget_value = certain([0.2, 0.6], [1.0, 9.0])
    unsure = BudgetValue(budget_value.value, torch.tensor([[1.0, 0.5], [1.0, 1.5]]), budget_value.cost_scale)
    answered, _ = unsure.call_terms(torch.tensor([[1.0, 9.0]]), torch.tensor([[10.0]]), torch.tensor([[1.0]]))
    assert answered.tolist() == [[1.0, 0.5]]


def test_ratios_are_those_of_the_costs():
    ratios = cost_ratios(torch.full((400, 1), 2.0), torch.linspace(1, 3, 400)[:, None], torch.ones(1))
    torch.testing.assert_close(ratios[:, 0], torch.tensor([0.625, 0.875, 1.125, 1.375]), rtol=0.01, atol=0.01)


def test_experts_may_be_free():
    table = synthetic_table()
    free = table.costs_usd.clone()
    free[:, 0] = 0
    estimates = Estimates(table.scores, free)
    object.__setattr__(table, "costs_usd", free)
    context = Context(estimates[:99], torch.zeros(99).double(), torch.full((99,), 9))
    chosen = Planned(table, estimates).choose(context)
    assert set(chosen.tolist()) == {0}
