"""What hindsight could reach is never below what a router reaches, and no higher than it must be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.estimators import kernel_ridge_estimates
from agents.evaluation.bounds import buy, estimated_bound, hindsight, hindsight_bound, hulls, with_no_expert
from agents.evaluation.evaluate import evaluate
from agents.routers import FixedMixture, PacedPrice, one_call_routers
from leeroo_env import ExpertTable, InputError, dynamics
from leeroo_env.builtin import resolve
from tests.conftest import random_table
from tests.synthetic import COST_USD, synthetic_optimum, synthetic_table


@st.composite
def episodes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    """Values [H, K] and costs [H, K] in whole quarters, so that ties, free and useless experts abound; a budget."""
    shape = h, k = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    quarters = st.lists(st.integers(0, 4), min_size=h * k, max_size=h * k)
    values, costs = (np.array(draw(quarters)).reshape(shape) / 4 for _ in range(2))
    return values, costs, draw(st.integers(0, 4 * h + 1)) / 4


def solve(values: np.ndarray, costs: np.ndarray, budget: float) -> np.ndarray:
    """`hindsight` of one episode: shares [H, K + 1]."""
    value, cost = (torch.from_numpy(np.asarray(a, dtype=np.float64))[None] for a in (values, costs))
    return hindsight(value, cost, torch.tensor([budget], dtype=torch.float64))[0].numpy()


def worth(shares: np.ndarray, values: np.ndarray) -> float:
    return float((shares[:, :-1] * values).sum())


def best_assignment(values: np.ndarray, costs: np.ndarray, budget: float) -> float:
    """The best whole assignment that the budget pays, by trying all of them."""
    h, k = values.shape
    values, costs = np.pad(values, ((0, 0), (0, 1))), np.pad(costs, ((0, 0), (0, 1)))
    choices = np.array(list(itertools.product(range(k + 1), repeat=h)))
    total = values[np.arange(h), choices].sum(axis=1)
    return float(total[costs[np.arange(h), choices].sum(axis=1) <= budget + 1e-12].max())


def relaxed_optimum(values: np.ndarray, costs: np.ndarray, budget: float) -> float:
    """The optimum of the linear relaxation from its dual: the least, over prices, of what queries are worth at them.

    The dual is convex and piecewise linear in the price, with kinks only where two options of a query draw level.
    """
    values, costs = np.pad(values, ((0, 0), (0, 1))), np.pad(costs, ((0, 0), (0, 1)))
    gain, extra = values[:, :, None] - values[:, None, :], costs[:, :, None] - costs[:, None, :]
    prices = np.append(0.0, (gain[extra > 0] / extra[extra > 0]).clip(min=0))
    surplus = (values - prices[:, None, None] * costs).max(axis=2).sum(axis=1)
    return float((prices * budget + surplus).min())


@settings(max_examples=300, deadline=None)
@given(episodes())
def test_it_is_the_optimum_of_the_relaxation(case: tuple):
    """Solved another way, by the dual; shares that are feasible and reach it cannot be wrong."""
    values, costs, budget = case
    shares = solve(values, costs, budget)
    assert worth(shares, values) == pytest.approx(relaxed_optimum(values, costs, budget), abs=1e-9)
    assert (shares >= -1e-12).all() and shares.sum(axis=1) == pytest.approx(np.ones(len(values)))
    assert worth(shares, costs) <= budget + 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_it_is_the_optimum_at_the_scale_of_real_prices(seed: int):
    """Costs of a millionth of a dollar, in single precision as in a table, over three orders of magnitude."""
    rng = np.random.default_rng(seed)
    values = rng.random((64, 8)).astype(np.float32).astype(np.float64)
    costs = (1e-7 * 10 ** rng.uniform(0, 3, size=(64, 8))).astype(np.float32).astype(np.float64)
    for budget in np.geomspace(1e-6, 1e-2, 5):
        shares = solve(values, costs, budget)
        assert worth(shares, values) == pytest.approx(relaxed_optimum(values, costs, budget), rel=1e-12)
        assert worth(shares, costs) <= budget * (1 + 1e-12)


def test_experts_in_line_but_for_rounding_are_bought_in_their_order():
    """Steps whose efficiency differs by the last bit: none may come before the one that it continues."""
    rng = np.random.default_rng(0)
    costs = torch.from_numpy(rng.random((200, 64, 12)))
    budgets = torch.linspace(0, 64, 200, dtype=torch.float64)
    assert (hulls(costs * 0.3 + 0.1, costs).efficiency.diff(dim=-1) <= 0).all()
    shares = hindsight(costs * 0.3 + 0.1, costs, budgets)
    assert shares.min() >= 0 and shares.max() <= 1 + 1e-12
    spent = (shares * with_no_expert(costs)).sum(dim=(1, 2))
    torch.testing.assert_close(spent, torch.minimum(costs.amax(dim=2).sum(dim=1), budgets))


@settings(max_examples=200, deadline=None)
@given(episodes())
def test_it_is_above_every_assignment_by_less_than_one_step(case: tuple):
    values, costs, budget = case
    shares = solve(values, costs, budget)
    best = best_assignment(values, costs, budget)
    split = ((shares > 1e-9) & (shares < 1 - 1e-9)).any(axis=1)
    assert split.sum() <= 1, "at most one query is shared"
    step = values[split].max(initial=0.0)
    assert best - 1e-9 <= worth(shares, values) <= best + step + 1e-9


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_hulls_are_concave_and_above_every_expert(seed: int, k: int):
    rng = np.random.default_rng(seed)
    values, costs = (torch.from_numpy(rng.integers(0, 6, size=(20, k)) / 5.0) for _ in range(2))
    hull = hulls(values, costs)
    x, y = (with_no_expert(a).gather(-1, hull.options).numpy() for a in (costs, values))
    assert (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all() and (hull.options[:, 0] == k).all()
    assert (hull.efficiency.diff(dim=-1) <= 0)[hull.efficiency[:, 1:].isfinite()].all()
    step = np.diff(x) > 0
    assert (np.diff(y)[step] / np.diff(x)[step]) == pytest.approx(hull.efficiency.numpy()[step])
    for i in range(20):
        assert (np.interp(costs[i], x[i], y[i]) >= values[i].numpy() - 1e-9).all()


@pytest.mark.parametrize(
    ("values", "costs", "budget", "expected"),
    [
        ([[0.5]], [[2.0]], 1.0, [[0.5, 0.5]]),  # K = 1, in part
        ([[0.5]], [[2.0]], 3.0, [[1, 0]]),
        ([[0.5], [1.0]], [[2.0], [2.0]], 2.0, [[0, 1], [1, 0]]),  # the later query is worth more
        ([[0.0, 0.0]], [[0.0, 1.0]], 9.0, [[0, 0, 1]]),  # nothing to gain: nobody
        ([[0.3, 0.2, 0.9]], [[0.0, 0.0, 1.0]], 0.0, [[1, 0, 0, 0]]),  # the better of two free ones, for no money
        ([[0.3, 0.2, 0.9]], [[0.0, 0.0, 1.0]], 0.5, [[0.5, 0, 0.5, 0]]),
        ([[0.5, 0.9]], [[1.0, 1.0]], 1.0, [[0, 1, 0]]),  # equal costs
        ([[0.9, 0.5]], [[1.0, 2.0]], 9.0, [[1, 0, 0]]),  # dearer and worse
        ([[0.5, 0.5]], [[2.0, 1.0]], 9.0, [[0, 1, 0]]),  # as good for less
        ([[0.4, 0.5, 1.0]], [[1.0, 2.0, 3.0]], 2.0, [[0.5, 0, 0.5, 0]]),  # below the hull
        ([[0.4, 0.8]], [[1.0, 2.0]], 1.0, [[0, 0.5, 0.5]]),  # on the hull: one step
    ],
)
def test_shares_by_hand(values: list, costs: list, budget: float, expected: list):
    assert solve(np.array(values), np.array(costs), budget) == pytest.approx(np.array(expected))


def test_budgets_are_solved_as_each_by_itself():
    """Protects the batch: G budgets over E episodes at once, none of which may leak into another."""
    rng = np.random.default_rng(0)
    values, costs = (torch.from_numpy(rng.random((5, 7, 3))) for _ in range(2))
    budgets = torch.from_numpy(rng.random((4, 5)) * 3)
    together = hindsight(values, costs, budgets)
    assert together.shape == (4, 5, 7, 4)
    for g, e in itertools.product(range(4), range(5)):
        alone = solve(values[e].numpy(), costs[e].numpy(), float(budgets[g, e]))
        np.testing.assert_allclose(together[g, e].numpy(), alone, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 15))
def test_no_router_is_above_it(seed: int, k: int, horizon: int):
    """The same episodes, the same money, from budgets that hardly pay one call to more than enough."""
    table = random_table(n=90, k=k, seed=seed)
    rules = dynamics.make_rules(table, "test", horizon=horizon)
    budgets = [1e-6, 3e-5, *dynamics.budget_grid(rules, 3), 1.0]
    bound = hindsight_bound(rules, budgets, episodes=20, seed=seed)
    assert (bound.cost_usd <= np.array(budgets) * (1 + 1e-9)).all()
    assert bound.calls.sum(axis=1) + bound.cut_off == pytest.approx(np.ones(len(budgets)))
    for name, router in one_call_routers(table, horizon, seed).items():
        result = evaluate(router, rules, budgets, episodes=20, seed=seed)
        assert (result.score <= bound.score + 1e-9).all(), name


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_more_money_never_hurts_and_helps_ever_less(seed: int, k: int):
    rules = dynamics.make_rules(random_table(n=60, k=k, seed=seed), "test", horizon=10)
    score = hindsight_bound(rules, np.linspace(0, 4e-3, 12).tolist(), episodes=10).score
    assert score[0] == 0
    assert (np.diff(score) >= -1e-12).all() and (np.diff(score, n=2) <= 1e-12).all()


def test_with_money_for_everything_it_is_the_best_answer_of_each_query():
    table = random_table(n=90)
    rules = dynamics.make_rules(table, "test", horizon=30)
    bound = hindsight_bound(rules, [1.0], episodes=4)
    rows = table.rows("test")
    best = table.scores[rows].max(dim=1).values
    assert bound.score[0] == pytest.approx(float(best.mean()), abs=1e-6)
    cheapest = table.costs_usd[rows].masked_fill(table.scores[rows] < best[:, None], torch.inf).min(dim=1).values
    assert bound.cost_usd[0] == pytest.approx(float((cheapest * (best > 0)).mean()), rel=1e-5)
    assert bound.cut_off[0] == pytest.approx(float((best == 0).float().mean()))
    assert bound.stderr[0] == pytest.approx(float(best.std()) / np.sqrt(30), rel=1e-4), "by query, not call"


def small_for_free(table: ExpertTable) -> ExpertTable:
    """Its test split with every cost less `small`'s: what `synthetic_optimum` solves, where all pay `small` anyway."""
    n = len(table.rows("test"))
    rows = table.rows("test").repeat(2)
    return ExpertTable.from_arrays(
        "free",
        table.experts,
        table.embeddings[rows].numpy(),
        table.scores[rows].numpy(),
        np.broadcast_to(np.array(COST_USD) - COST_USD[0], (2 * n, 3)),
        split=["test"] * n + ["train"] * n,
    )


def test_it_is_the_known_optimum_on_long_streams():
    table = small_for_free(synthetic_table(n=10_000))
    rules = dynamics.make_rules(table, "test", horizon=len(table) // 2, budget_usd_per_query=1e-3)
    budgets = np.linspace(COST_USD[0] * 1.05, COST_USD[2], 12)
    bound = hindsight_bound(rules, (budgets - COST_USD[0]).tolist(), episodes=2)
    assert bound.score == pytest.approx([synthetic_optimum(b) for b in budgets], abs=0.02)


def test_where_small_must_be_paid_for_nobody_saves_its_price():
    """The optimum by hand where hard queries may go to nobody: easy, code and hard ones by falling score a dollar."""
    table = synthetic_table()
    rows = table.rows("test")
    rules = dynamics.make_rules(table, "test", horizon=len(rows))
    shares = np.unique(table.scores[rows].numpy(), axis=0, return_counts=True)[1] / len(rows)  # hard, code, easy
    budgets = np.linspace(2e-5, 1e-3, 12)
    bound = hindsight_bound(rules, budgets.tolist(), episodes=2)
    spent = np.cumsum(shares[::-1] * COST_USD)
    expected = np.interp(budgets, np.append(0.0, spent), np.append(0.0, np.cumsum(shares[::-1])))
    assert bound.score == pytest.approx(expected, abs=1e-6)
    assert (bound.score >= np.array([synthetic_optimum(b) for b in budgets]) - 0.02).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_true_estimates_lose_nothing_and_false_ones_gain_nothing(seed: int, k: int):
    table = random_table(n=60, k=k, seed=seed)
    rules = dynamics.make_rules(table, "test", horizon=8)
    budgets = [1e-6, *dynamics.budget_grid(rules, 4), 1.0]
    bound = hindsight_bound(rules, budgets, episodes=20)
    same = estimated_bound(rules, table.scores.double(), table.costs_usd.double(), budgets, episodes=20)
    for field in ("score", "cost_usd", "stderr", "calls", "cut_off"):
        np.testing.assert_allclose(getattr(same, field), getattr(bound, field), rtol=1e-9, atol=1e-12)
    generator = torch.Generator().manual_seed(seed)
    score, cost_usd = (a * torch.rand(a.shape, generator=generator) * 2 for a in (table.scores, table.costs_usd))
    false = estimated_bound(rules, score, cost_usd, budgets, episodes=20)
    assert (false.score <= bound.score + 1e-9).all()
    assert (false.cost_usd <= np.array(budgets) * (1 + 1e-9)).all(), "charged at true costs"
    assert false.calls.min() >= -1e-12 and false.calls.sum(axis=1) + false.cut_off == pytest.approx(np.ones(6))


def one_query_table(scores: list, costs_usd: list) -> dynamics.Rules:
    """One query of each split, all alike, and episodes of one query."""
    arrays = [np.repeat(np.array([a], dtype=np.float64), 3, axis=0) for a in (scores, costs_usd)]
    names = [f"expert-{i}" for i in range(len(scores))]
    table = ExpertTable.from_arrays("one", names, np.ones((3, 2)), *arrays, split=["train", "val", "test"])
    return dynamics.make_rules(table, "test", horizon=1, budget_usd_per_query=100.0)


@pytest.mark.parametrize(
    ("estimated_scores", "estimated_costs", "budget", "calls", "cost"),
    [
        ([0.4, 0.7, 0.9], [1.0, 2.0, 3.0], 10.0, [0, 0, 1], 3.0),  # pays 4, saves 3, pays 2
        ([0.4, 0.7, 0.9], [1.0, 2.0, 3.0], 4.0, [0, 0, 1], 3.0),  # what the second step saves pays for the third
        ([0.4, 0.7, 0.9], [1.0, 2.0, 3.0], 2.0, [0.5, 0, 0], 2.0),  # the first step is dearer than thought
        ([0.4, 0.7, 0.9], [0.0, 2.0, 3.0], 2.0, [0.5, 0, 0], 2.0),  # also if it is thought free
        ([0.4, 0.7, 0.9], [-1.0, 2.0, 3.0], 2.0, [0.5, 0, 0], 2.0),  # or less than free
        ([0.4, 0.9, 0.7], [1.0, 3.0, 2.0], 4.0, [0, 1, 0], 1.0),  # pays 4, saves 1, saves 2
    ],
)
def test_steps_are_charged_at_true_costs_even_below_zero(
    estimated_scores: list, estimated_costs: list, budget: float, calls: list, cost: float
):
    """Experts that truly cost 4, 1 and 3; what a step saves is money to spend again."""
    rules = one_query_table([0.2, 0.4, 0.9], [4.0, 1.0, 3.0])
    score, cost_usd = (torch.tensor([a] * 3) for a in (estimated_scores, estimated_costs))
    result = estimated_bound(rules, score, cost_usd, [budget], episodes=2)
    assert result.calls[0] == pytest.approx(calls) and result.cost_usd[0] == pytest.approx(cost)
    assert result.score[0] == pytest.approx(np.dot(calls, [0.2, 0.4, 0.9])), "true scores, not estimates"
    assert result.cut_off[0] == pytest.approx(1 - sum(calls))


def test_nothing_is_bought_after_the_step_that_overdraws():
    """Two queries: the first step takes all money, so the cheap second one, thought less efficient, gets nothing."""
    values, estimated, true = (
        torch.tensor(a, dtype=torch.float64) for a in ([[[0.9], [0.5]]], [[[1.0], [1.0]]], [[[5.0], [0.1]]])
    )
    shares = buy(hulls(values, estimated), true, torch.tensor([2.0], dtype=torch.float64))
    assert shares[0].tolist() == [[pytest.approx(0.4), pytest.approx(0.6)], [0.0, 1.0]]


def test_estimates_that_do_not_fit_are_refused():
    table = random_table()
    rules = dynamics.make_rules(table, "test", horizon=4)
    with pytest.raises(InputError, match=r"estimated scores \[20, 4\]: not finite \[60, 4\]"):
        estimated_bound(rules, table.scores[:20], table.costs_usd, [1.0])
    with pytest.raises(InputError, match="estimated costs"):
        estimated_bound(rules, table.scores, table.costs_usd * torch.nan, [1.0])


def test_on_real_answers_estimates_lie_between_hindsight_and_the_best_mixture():
    """Protects the reading of regrets: what the estimates cost is positive and so is what they are worth."""
    table = resolve("tiny")
    estimates = kernel_ridge_estimates(table)
    rules = dynamics.make_rules(table, "test")
    budgets = dynamics.budget_grid(rules)
    bound = hindsight_bound(rules, budgets, episodes=64)
    estimated = estimated_bound(rules, estimates.score, estimates.cost_usd, budgets, episodes=64)
    routers = FixedMixture(table), PacedPrice(table, estimates)
    mixture, paced = (evaluate(router, rules, budgets, 64) for router in routers)
    assert (bound.score > estimated.score + 0.02).all()
    assert (estimated.score > mixture.score + 0.02).all() and (estimated.score > paced.score - 0.01).all()
