"""Every router of the registry keeps the contract of `Router`, on tables with paid and with only free experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.estimators import Estimates
from agents.evaluation.evaluate import Result, evaluate
from agents.policies.answer_model import AnswerModel
from agents.routers import Context, Router, multi_call_routers, one_call_routers
from agents.routers.base import LotteryRouter, price_grid
from agents.routers.registry import ESTIMATORS
from leeroo_env import ExpertTable, dynamics
from tests.conftest import random_table

K, HORIZON, MAX_CALLS = 4, 6, 3
ONE_CALL = (
    "random",
    "cheapest",
    "best single",
    "best mixture",
    *(f"{kind} {name}" for name in ESTIMATORS for kind in ("paced", "fixed price", "planned")),
    "two-step kernel ridge",
)
MULTI_CALL = ("majority", "cascade", "cascade routing", "two-stage trees")


def make_table(free: bool) -> ExpertTable:
    answers = np.random.default_rng(1).choice(["a", "b", "c"], size=(90, K)).astype(object)
    table = random_table(n=90, k=K, answers=answers)
    return replace(table, costs_usd=torch.zeros_like(table.costs_usd)) if free else table


def make_routers(table: ExpertTable, seed: int = 0) -> dict[str, Router]:
    """All routers, those of several calls with an answer model that is not fitted, which would take seconds."""
    score, cost_usd = (x.expand(len(table), -1).contiguous() for x in (table.mean_score(), table.mean_cost_usd()))
    several = multi_call_routers(table, Estimates(score, cost_usd), MAX_CALLS, seed, AnswerModel(K))
    return one_call_routers(table, HORIZON, seed) | several


@pytest.fixture(scope="module", params=[False, True], ids=["paid experts", "free experts"])
def tables(request: pytest.FixtureRequest) -> tuple[ExpertTable, dict[str, Router]]:
    table = make_table(request.param)
    return table, make_routers(table)


class Checked(Router):
    """Passes choices on after checking them."""

    def __init__(self, router: Router, mean_cost_usd: Tensor):
        self.router, self.max_calls, self.features = router, router.max_calls, router.features
        self.mean_cost_usd = mean_cost_usd.double()

    def begin(self, budgets_usd_per_query: Tensor) -> None:
        self.router.begin(budgets_usd_per_query)

    def choose(self, context: Context) -> Tensor:
        chosen = self.router.choose(context)
        assert chosen.shape == (len(context),) and chosen.dtype == torch.int64
        assert chosen.device == context.remaining_usd.device
        n_actions = K + (self.max_calls > 1)
        assert bool(((chosen >= 0) & (chosen < n_actions)).all())
        cost_usd = torch.cat([self.mean_cost_usd, torch.zeros(1)])[chosen]
        assert bool((cost_usd <= context.remaining_usd.clamp(min=self.mean_cost_usd.min())).all()), "over budget"
        return chosen


def play(router: Router, table: ExpertTable) -> Result:
    rules = dynamics.make_rules(table, "test", HORIZON)
    return evaluate(Checked(router, table.mean_cost_usd()), rules, [*dynamics.budget_grid(rules, 3), 10.0], 8)


def test_the_registry_has_these_routers(tables: tuple[ExpertTable, dict[str, Router]]):
    assert set(tables[1]) == {*ONE_CALL, *MULTI_CALL}


@pytest.mark.parametrize("name", [*ONE_CALL, *MULTI_CALL])
def test_choices_are_valid_within_budget_and_the_same_in_every_evaluation(tables, name: str):
    table, routers = tables
    router = routers[name]
    assert router.max_calls == (MAX_CALLS if name in MULTI_CALL else 1)
    assert router.features is None or len(router.features) == len(table)
    once, again = play(router, table), play(router, table)
    assert (once.chosen == again.chosen).all() and (once.scored == again.scored).all()
    assert np.isfinite(once.score).all() and np.isfinite(once.cost_usd).all()
    assert (once.calls.sum(axis=1) <= router.max_calls + 1e-9).all() and (once.calls.sum(axis=1) > 0).all()
    if bool((table.costs_usd == 0).all()):
        assert (once.cost_usd == 0).all() and (once.cut_off == 0).all()


def test_the_same_seed_makes_the_same_routers():
    table = make_table(free=False)
    first, second, other = (make_routers(table, seed) for seed in (5, 5, 6))
    for name in first:
        assert (play(first[name], table).chosen == play(second[name], table).chosen).all(), name
    assert (play(first["random"], table).chosen != play(other["random"], table).chosen).any()


def test_a_context_has_estimates_only_where_the_router_observes_them():
    usd, queries = torch.ones(2), torch.ones(2)
    estimates = Estimates(torch.zeros(2, K), torch.zeros(2, K))
    assert Context(estimates, usd, queries).estimates is estimates
    with pytest.raises(AssertionError):
        _ = Context(torch.zeros(2, 3), usd, queries).estimates


class Lottery(LotteryRouter):
    def choose(self, context: Context) -> Tensor:
        return self.mix(torch.tensor([1.0, 2.0, 4.0]).double().expand(len(context), 3), context.usd_per_query)


def test_a_lottery_costs_what_may_be_spent():
    """Between the choices that cost 1, 2 and 4; below and above them it takes the first and the last."""
    router = Lottery(seed=0, device=torch.device("cpu"))
    cost_usd = torch.tensor([1.0, 2.0, 4.0])
    for usd, expected in ((0.5, 1.0), (1.0, 1.0), (1.3, 1.3), (2.0, 2.0), (3.0, 3.0), (4.0, 4.0), (9.0, 4.0)):
        n = 20_000
        context = Context(torch.zeros(n, 1), torch.full((n,), usd * 10.0).double(), torch.full((n,), 10))
        assert float(cost_usd[router.choose(context)].mean()) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("mean_cost_usd", "low", "high"), [([0.0, 2.0, 8.0], 2.0, 8.0), ([0.0, 0.0], 1.0, 1.0)])
def test_the_price_grid_falls_between_its_ends(mean_cost_usd: list[float], low: float, high: float):
    prices = price_grid(torch.tensor(mean_cost_usd), 9, first=3.0, last=0.01)
    assert prices.dtype == torch.float32 and bool((prices.diff() < 0).all())
    assert prices[[0, -1]].tolist() == pytest.approx([3 / low, 0.01 / high])
