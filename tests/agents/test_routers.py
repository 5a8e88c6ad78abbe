"""The routers that the agent is measured against do what they are named for, and do it well."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from agents.evaluate import _clustered_stderr, evaluate
from agents.predictor import fit_predictor
from agents.routers import (
    BestSingle,
    Cheapest,
    FixedMixture,
    PacedPrice,
    Random,
    keep_reserve,
    other_routers,
    upper_hull,
)
from leeroo_env import ExpertTable, dynamics
from tests.conftest import random_table
from tests.synthetic import synthetic_optimum, synthetic_table


def test_cheapest_and_random(table: ExpertTable):
    embeddings = np.zeros((4000, 5), np.float32)
    assert set(Cheapest(table).choose(embeddings, np.ones(4000), np.ones(4000))) == {0}
    plenty = Random(table).choose(embeddings, np.ones(4000), np.ones(4000))
    assert np.bincount(plenty, minlength=4).min() > 900
    cost = table.mean_cost_usd().numpy()
    assert set(Random(table).choose(embeddings, np.full(4000, cost[1] * 1.01), np.ones(4000))) == {0, 1}


def test_best_single_takes_the_best_that_fits(table: ExpertTable):
    router, cost, score = BestSingle(table), table.mean_cost_usd().numpy(), table.mean_score().numpy()
    for budget in np.geomspace(cost.min() / 2, cost.max() * 2, 30):
        fits = [k for k in range(4) if cost[k] <= budget] or [0]
        chosen = router.choose(np.zeros((1, 5)), np.array([budget * 10]), np.array([10]))[0]
        assert chosen == max(fits, key=lambda k: score[k])


def test_the_mixture_costs_what_there_is_and_is_on_the_hull(table: ExpertTable):
    router, cost, score = FixedMixture(table), table.mean_cost_usd().numpy(), table.mean_score().numpy()
    best = cost[score.argmax()]
    for budget in np.geomspace(cost.min(), best, 5):
        chosen = router.choose(np.zeros((50_000, 5)), np.full(50_000, budget * 1000), np.full(50_000, 1000))
        assert cost[chosen].mean() == pytest.approx(budget, rel=0.03)
        mixtures = [
            score[i] + (score[j] - score[i]) * (budget - cost[i]) / (cost[j] - cost[i])
            for i, j in itertools.permutations(range(4), 2)
            if cost[i] <= budget <= cost[j]
        ]
        assert score[chosen].mean() == pytest.approx(max([*mixtures, score[cost <= budget * 1.0001].max()]), abs=0.01)


def test_hull_is_concave_and_above_every_expert():
    rng = np.random.default_rng(0)
    for _ in range(200):
        cost, score = rng.uniform(0.1, 10, 8), rng.uniform(0, 1, 8)
        hull = upper_hull(cost, score)
        assert hull[0] == cost.argmin() and hull[-1] == score.argmax()
        assert (np.interp(cost, cost[hull], score[hull]) >= score - 1e-9).all()
        slopes = np.diff(score[hull]) / np.diff(cost[hull])
        assert (slopes > 0).all() and (np.diff(slopes) < 0).all()


def test_the_reserve_is_kept():
    cost = np.array([1.0, 10.0])
    actions = keep_reserve(np.array([1, 1, 1, 0]), np.array([15.0, 14.9, 5.0, 0.1]), np.array([6, 6, 1, 9]), cost)
    assert actions.tolist() == [1, 0, 0, 0]


def test_every_router_plays_the_same_episodes_and_never_overdraws(table: ExpertTable):
    rules = dynamics.make_rules(table, "test", horizon=10)
    budgets = dynamics.budget_grid(rules)
    for name, router in other_routers(table, fit_predictor(table)).items():
        result = evaluate(router, rules, budgets, episodes=30)
        assert (result.cost_usd <= np.array(budgets) * (1 + 1e-6)).all(), name
        assert (
            result.calls.sum(axis=1) == pytest.approx(np.ones(6)) and ((result.score >= 0) & (result.score <= 1)).all()
        )
    plenty = [1.0, 2.0, 3.0]
    again = [evaluate(Cheapest(table), rules, plenty, episodes=30).score.tolist() for _ in range(2)]
    assert again[0] == again[1] and len(set(again[0])) == 1, "the same queries at every budget and in every call"


def test_evaluation_counts_what_the_table_says():
    table = random_table(n=90)
    rules = dynamics.make_rules(table, "test", horizon=30)
    result = evaluate(Cheapest(table), rules, [1.0], episodes=3)
    rows = table.rows("test")
    assert result.score[0] == pytest.approx(float(table.scores[rows, 0].mean()), abs=1e-6)
    assert result.cost_usd[0] == pytest.approx(float(table.costs_usd[rows, 0].mean()), rel=1e-5)


def test_standard_error_is_that_of_independent_queries():
    rng = np.random.default_rng(0)
    cluster, effect = rng.integers(0, 100, 3000), rng.normal(size=100)
    once = _clustered_stderr(effect, np.arange(100))
    assert once == pytest.approx(effect.std() / 10, rel=1e-6)
    assert _clustered_stderr(effect[cluster], cluster) == pytest.approx(once, rel=0.2), "repeating queries adds nothing"


def test_the_known_optimum_is_out_of_reach_without_the_query_and_near_with_it():
    table = synthetic_table()
    rules = dynamics.make_rules(table, "test")
    budgets = dynamics.budget_grid(rules)
    optimum = np.array([synthetic_optimum(b) for b in budgets])
    for name, router in other_routers(table, fit_predictor(table)).items():
        result = evaluate(router, rules, budgets, episodes=64)
        if name == "paced kernel ridge":
            assert (result.score > optimum - 0.05).all() and (result.score < optimum + 0.03).all()
        else:
            assert (result.score < optimum - 0.05).all(), name


def test_the_paced_price_spends_what_is_left_and_no_more():
    table = random_table(n=600)
    router = PacedPrice(table, fit_predictor(table))
    assert (np.diff(router.spent_usd) <= 0).all() and (np.diff(router.prices) > 0).all()
    rules = dynamics.make_rules(table, "test", horizon=50)
    budgets = dynamics.budget_grid(rules)
    reach = router.spent_usd[0]
    for budget, cost in zip(budgets, evaluate(router, rules, budgets, episodes=20).cost_usd, strict=True):
        assert cost <= budget * (1 + 1e-9) and cost > 0.85 * min(budget, reach)
