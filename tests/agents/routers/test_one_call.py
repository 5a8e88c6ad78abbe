"""The routers that the agent is measured against do what they are named for, and do it well."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.estimators import Estimates, domain_mean_estimates, kernel_ridge_estimates
from agents.evaluation.evaluate import Result, clustered_stderr, evaluate, summary
from agents.policies.hull import upper_hull
from agents.routers import (
    BestSingle,
    Cheapest,
    Context,
    FixedMixture,
    FixedPrice,
    PacedPrice,
    Planned,
    Random,
    Router,
    TwoStep,
    one_call_routers,
    within_reserve,
)
from agents.routers.priced import CAUTION, best_at_price
from leeroo_env import ExpertTable, dynamics
from tests.conftest import random_table
from tests.synthetic import synthetic_optimum, synthetic_table

WITHOUT_CONTEXT = {"random", "cheapest", "best single", "best mixture"}


def usd(*dollars: float) -> Tensor:
    return torch.tensor(dollars, dtype=torch.float64)


def choose(router, n: int, remaining_usd: float, remaining_queries: int, seen: Estimates | None = None) -> np.ndarray:
    """The choices of n episodes that stand alike; [n]."""
    seen = Estimates(torch.zeros(n, 5), torch.zeros(n, 5)) if seen is None else seen
    left = torch.full((n,), remaining_usd, dtype=torch.float64), torch.full((n,), remaining_queries)
    chosen = router.choose(Context(seen, *left))
    assert chosen.shape == (n,) and chosen.dtype == torch.int64
    return chosen.numpy()


def with_costs(costs_usd: list[float], n: int = 90) -> ExpertTable:
    """Experts at fixed prices, the dearer the better, without any structure besides."""
    table = random_table(n=n, k=len(costs_usd))
    better = torch.linspace(0, 0.5, len(costs_usd))
    return replace(
        table,
        costs_usd=torch.tensor(costs_usd).expand(n, -1).contiguous(),
        scores=(0.5 * table.scores + better).contiguous(),
    )


def truth(table: ExpertTable) -> Estimates:
    """The best estimates there could be."""
    return Estimates(table.scores, table.costs_usd)


def play(router, table: ExpertTable, horizon: int = 64, episodes: int = 64) -> Result:
    rules = dynamics.make_rules(table, "test", horizon)
    return evaluate(router, rules, dynamics.budget_grid(rules), episodes)


def test_cheapest_and_random(table: ExpertTable):
    assert set(choose(Cheapest(table), 4000, 1.0, 1)) == {0}
    assert np.bincount(choose(Random(table), 4000, 1.0, 1), minlength=4).min() > 900
    cost = table.mean_cost_usd().numpy()
    assert set(choose(Random(table), 4000, cost[1] * 1.01, 1)) == {0, 1}
    assert choose(Random(table, 1), 99, 1.0, 1).tolist() == choose(Random(table, 1), 99, 1.0, 1).tolist()


def test_best_single_takes_the_best_that_fits(table: ExpertTable):
    router, cost, score = BestSingle(table), table.mean_cost_usd().numpy(), table.mean_score().numpy()
    for budget in np.geomspace(cost.min() / 2, cost.max() * 2, 30):
        fits = [k for k in range(4) if cost[k] <= budget] or [0]
        assert choose(router, 1, budget * 10, 10)[0] == max(fits, key=lambda k: score[k])


def test_the_mixture_costs_what_there_is_and_is_on_the_hull(table: ExpertTable):
    router, cost, score = FixedMixture(table), table.mean_cost_usd().numpy(), table.mean_score().numpy()
    best = cost[score.argmax()]
    for budget in np.geomspace(cost.min(), best, 5):
        chosen = choose(router, 50_000, budget * 1000, 1000)
        assert cost[chosen].mean() == pytest.approx(budget, rel=0.03)
        mixtures = [
            score[i] + (score[j] - score[i]) * (budget - cost[i]) / (cost[j] - cost[i])
            for i, j in itertools.permutations(range(4), 2)
            if cost[i] <= budget <= cost[j]
        ]
        assert score[chosen].mean() == pytest.approx(max([*mixtures, score[cost <= budget * 1.0001].max()]), abs=0.01)


def test_a_mixture_does_without_the_experts_that_it_may_not_spend_on():
    """Where the dear one is too dear, the best is a lottery between the other two, not the cheapest alone."""
    router = FixedMixture(with_costs([1.0, 2.0, 100.0]))
    assert set(choose(router, 500, 3.4, 2)) == {0, 1}
    assert set(choose(router, 500, 300.0, 2)) == {2}
    assert set(choose(router, 500, 103.0, 4)) == {1, 2}


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
    allowed = within_reserve(torch.tensor([10.0, 1.0]), usd(15.0, 14.9, 10.0, 0.1), torch.tensor([6, 6, 1, 9]))
    assert allowed.tolist() == [[True, True], [False, True], [True, True], [False, True]]
    free = within_reserve(torch.tensor([0.0, 1.0, 0.0]), usd(0.0, 1.0), torch.tensor([5, 5]))
    assert free.tolist() == [[True, False, True], [True, True, True]]


@pytest.mark.parametrize("name", ["random", "best mixture", "paced kNN", "fixed price kNN", "two-step kernel ridge"])
def test_routers_that_keep_a_reserve_can_ask_to_the_end(name: str):
    """At fixed prices nothing is refused, from one dollar a query on, and all of it goes to the best allowed expert."""
    table = with_costs([1.0, 3.0, 10.0])
    rules = dynamics.make_rules(table, "test", horizon=12)
    result = evaluate(one_call_routers(table, 12)[name], rules, [1.0, 1.1, 2.0, 5.0, 9.9], episodes=50)
    assert (result.cut_off == 0).all()
    assert result.cost_usd[0] == 1.0 and result.cost_usd[-1] > 3.0


def test_every_router_plays_the_same_episodes_and_never_overdraws(table: ExpertTable):
    rules = dynamics.make_rules(table, "test", horizon=10)
    budgets = dynamics.budget_grid(rules)
    for name, router in one_call_routers(table, 10).items():
        result = evaluate(router, rules, budgets, episodes=30)
        assert (result.cost_usd <= np.array(budgets) * (1 + 1e-6)).all(), name
        assert result.calls.sum(axis=1) == pytest.approx(np.ones(6))
        assert ((result.score >= 0) & (result.score <= 1)).all()
    plenty = [1.0, 2.0, 3.0]
    again = [evaluate(Cheapest(table), rules, plenty, episodes=30).score.tolist() for _ in range(2)]
    assert again[0] == again[1] and len(set(again[0])) == 1, "the same queries at every budget and in every call"


@pytest.mark.parametrize(
    "costs_usd", [[1.0], [1.0, 5.0], [0.0, 0.0], [2.0, 2.0, 2.0], [0.0, 1.0, 1.0], [1.0, 1e4]], ids=str
)
def test_few_free_and_equally_dear_experts(costs_usd: list[float]):
    """All routers play, and where money is no object they take the best expert, or one that looks better still."""
    table = with_costs(costs_usd)
    rules = dynamics.make_rules(table, "test", horizon=6)
    budgets = [*dynamics.budget_grid(rules, 3), 1e6]
    for name, router in one_call_routers(table, 6).items():
        result = evaluate(router, rules, budgets, episodes=20)
        assert np.isfinite(result.score).all() and (result.cost_usd <= np.array(budgets) * (1 + 1e-9)).all(), name
        if name not in ("cheapest", "random"):
            assert result.calls[-1, -1] > 0.5, name


def test_evaluation_counts_what_the_table_says():
    table = random_table(n=90)
    rules = dynamics.make_rules(table, "test", horizon=30)
    result = evaluate(Random(table), rules, [1.0, 2e-4], episodes=3)
    assert result.chosen.shape == result.rows.shape == (2, 90)
    assert sorted(result.rows[0, :30]) == table.rows("test").tolist() and (result.rows[0] == result.rows[1]).all()
    assert result.score[0] == pytest.approx(table.scores.numpy()[result.rows[0], result.chosen[0]].mean(), abs=1e-6)
    assert result.cost_usd[0] == pytest.approx(
        table.costs_usd.numpy()[result.rows[0], result.chosen[0]].mean(), rel=1e-5
    )
    assert result.calls[1] == pytest.approx(np.bincount(result.chosen[1], minlength=4) / 90)
    described = summary(rules, "test", 0, [1.0, 2e-4], {"random": result})
    assert set(described["routers"]["random"]) == {"score", "cost_usd", "stderr", "calls", "cut_off"}


def test_a_router_sees_its_own_features_and_the_budgets():
    class Spy(Router):
        features = torch.arange(90.0)[:, None]

        def begin(self, budgets_usd_per_query: Tensor) -> None:
            self.budgets = budgets_usd_per_query.tolist()
            self.seen: list[Tensor] = []

        def choose(self, context: Context) -> Tensor:
            assert isinstance(context.features, Tensor)
            self.seen.append(context.features[:, 0])
            return torch.zeros(len(context), dtype=torch.int64)

    spy = Spy()
    result = evaluate(spy, dynamics.make_rules(random_table(n=90), "test", horizon=7), [0.5, 2.0], episodes=2)
    assert spy.budgets == [0.5, 0.5, 2.0, 2.0]
    assert torch.stack(spy.seen, dim=1).flatten().tolist() == result.rows.flatten().tolist()


def test_standard_error_is_that_of_independent_queries():
    rng = np.random.default_rng(0)
    cluster, effect = rng.integers(0, 100, 3000), rng.normal(size=100)
    once = clustered_stderr(effect, np.arange(100))
    assert once == pytest.approx(effect.std(ddof=1) / 10, rel=1e-6)
    assert clustered_stderr(effect[cluster], cluster) == pytest.approx(once, rel=0.2), "repeating queries adds nothing"


@pytest.mark.parametrize("horizon", [64, 8])
def test_the_known_optimum_is_out_of_reach_without_the_query_and_near_with_it(horizon: int):
    table = synthetic_table()
    rules = dynamics.make_rules(table, "test", horizon)
    budgets = dynamics.budget_grid(rules)
    optimum = np.array([synthetic_optimum(b) for b in budgets])
    for name, router in one_call_routers(table, horizon).items():
        score = evaluate(router, rules, budgets, episodes=64).score
        assert (score < optimum + 0.03).all(), name
        if name in WITHOUT_CONTEXT:
            assert (score < optimum - 0.05).all(), name
        elif "two-step" not in name:
            assert score.mean() > optimum.mean() - (0.04 if horizon == 64 else 0.1), name


def test_what_looks_at_the_query_gains_nothing_where_it_tells_nothing():
    """Domains all alike: the rules with a price come down to those that do not look."""
    table = random_table(n=900)
    estimated = domain_mean_estimates(table)
    mixture = play(FixedMixture(table), table).score.mean()
    for router in (PacedPrice(table, estimated), FixedPrice(table, estimated, 64), Planned(table, estimated)):
        assert play(router, table).score.mean() == pytest.approx(mixture, abs=0.03)


def test_the_paced_price_spends_what_is_left_and_no_more():
    table = random_table(n=600)
    router = PacedPrice(table, kernel_ridge_estimates(table))
    prices, spent = router.price_table.prices, router.price_table.spent_usd
    assert bool((prices.diff() < 0).all() and (spent.diff(dim=1) >= 0).all())
    rules = dynamics.make_rules(table, "test", horizon=50)
    budgets = dynamics.budget_grid(rules)
    reach = float(spent[-1, -1])
    for budget, cost in zip(budgets, evaluate(router, rules, budgets, episodes=20).cost_usd, strict=True):
        assert cost <= budget * (1 + 1e-9) and cost > 0.85 * min(budget, reach)


@pytest.mark.parametrize("n_allowed", [2, 3, 4])
def test_at_its_price_the_training_queries_cost_what_was_asked_for(n_allowed: int):
    """With all experts and with the cheapest few."""
    table = random_table(n=3000)
    router, rows = PacedPrice(table, truth(table)), table.rows("train")
    allowed = (torch.arange(4) < n_allowed).expand(len(rows), 4)
    reach = router.price_table.spent_usd[n_allowed - 1]
    for pace in torch.linspace(float(reach[0]) * 1.1, float(reach[-1]) * 0.95, 5):
        price = router.price_table.price(pace[None], torch.tensor([n_allowed]))
        plenty = torch.full((len(rows),), 1.0)
        expert = best_at_price(truth(table)[rows], price.expand(len(rows)), allowed, plenty)
        assert float(table.costs_usd[rows, expert].mean()) == pytest.approx(float(pace), rel=0.05)


def test_the_price_falls_with_the_pace_and_is_0_where_money_is_no_object():
    table = random_table(n=600)
    price = PacedPrice(table, kernel_ridge_estimates(table)).price_table.price
    prices = price(torch.logspace(-6, 0, 200))
    assert bool((prices.diff() <= 0).all()) and float(prices[-1]) == 0 and float(prices[0]) > 1e4


def test_what_would_be_refused_is_not_asked():
    estimates = Estimates(torch.tensor([[0.2, 0.9]]).repeat(3, 1), torch.tensor([[1.0, 6.0]]).repeat(3, 1))
    allowed = torch.ones(3, 2, dtype=torch.bool)
    assert best_at_price(estimates, torch.zeros(3), allowed, usd(7.0, 6.0, 5.0)).tolist() == [1, 1, 0]


def test_prices_are_solved_among_the_experts_that_may_be_spent_on():
    """The dear expert is out of reach: what is left goes to the better of the others, not all to the cheapest."""
    table = with_costs([1.0, 2.0, 100.0], n=600)
    seen = truth(table)[:200]
    for router in (PacedPrice(table, truth(table)), TwoStep(table, truth(table))):
        chosen = choose(router, 200, 60.0, 40, seen)
        assert set(chosen) == {0, 1}
        assert table.mean_cost_usd()[chosen].mean().item() == pytest.approx(1.5 * CAUTION, abs=0.15)


def test_a_fixed_price_is_tuned_once_a_budget_and_stays():
    table = random_table(n=600)
    router = FixedPrice(table, kernel_ridge_estimates(table), 16)
    calls = []
    tune = router._tune
    router._tune = lambda budget: calls.append(budget) or tune(budget)  # type: ignore[method-assign, func-returns-value]
    budgets = usd(2e-4, 1e-3, 2e-4)
    router.begin(budgets)
    prices = router.price.tolist()
    router.begin(budgets)
    assert sorted(calls) == [2e-4, 1e-3] and router.price.tolist() == prices
    assert prices[0] == prices[2] > prices[1] > 0


def test_a_fixed_price_is_the_best_on_val():
    table = random_table(n=600)
    estimated = kernel_ridge_estimates(table)
    router = FixedPrice(table, estimated, 16)
    rules = dynamics.make_rules(table, "val", 16)
    budgets = dynamics.budget_grid(rules)
    tuned = evaluate(router, rules, budgets).score
    for factor in (0.25, 4.0):
        router.tuned = {budget: price * factor for budget, price in router.tuned.items()}
        assert evaluate(router, rules, budgets).score.mean() < tuned.mean()
        router.tuned = {budget: price / factor for budget, price in router.tuned.items()}


def test_two_steps_are_the_best_pair_at_the_best_threshold():
    """Against a plain search over all pairs and thresholds, by training score at the cost there is."""
    table = with_costs([1.0, 3.0, 9.0, 27.0], n=150)
    noise = 1e-3 * torch.rand(150, 4, generator=torch.Generator().manual_seed(0))  # so that no two gains are equal
    seen = Estimates(table.scores + noise, table.costs_usd)
    router, rows = TwoStep(table, seen), table.rows("train")
    score, cost = table.scores[rows].numpy().astype(float), table.costs_usd[rows].numpy().astype(float)
    for pace in np.geomspace(cost.mean(axis=0).min() * 1.2, cost.mean(axis=0).max() * 1.2, 7):
        best = 0.0
        for i, j in itertools.permutations(range(4), 2):
            gain = (seen.score[rows, j] - seen.score[rows, i]).numpy()
            for threshold in [-2.0, *np.unique(gain)]:
                pick = np.where(gain > threshold, j, i)
                at = np.arange(len(rows)), pick
                if cost[at].mean() <= pace:
                    best = max(best, score[at].mean())
        chosen = choose(router, len(rows), pace * 1000, 1000, seen[rows])
        assert score[np.arange(len(rows)), chosen].mean() == pytest.approx(best, abs=0.015)
        assert cost[np.arange(len(rows)), chosen].mean() <= pace


def test_a_plan_saves_for_what_pays_more():
    """Two queries and money for one dear answer: it goes to the query that the dear expert is sure to gain on."""
    table = with_costs([1.0, 10.0], n=600)
    half = torch.arange(600) % 2 == 0
    scores = torch.where(half[:, None], torch.tensor([0.1, 1.0]), torch.tensor([0.1, 0.3]))
    table = replace(table, scores=scores)
    seen = Estimates(torch.tensor([[0.1, 1.0], [0.1, 0.3]]), torch.tensor([[1.0, 10.0], [1.0, 10.0]]))
    router = Planned(table, truth(table))
    assert choose(router, 2, 12.0, 2, seen).tolist() == [1, 0]
    assert choose(router, 2, 12.0, 1, seen).tolist() == [1, 1]
    assert choose(router, 2, 25.0, 2, seen).tolist() == [1, 1]
    assert choose(router, 2, 6.0 * 300, 300, seen).tolist() == [1, 0], "longer than the plan reaches"


def test_short_episodes_are_not_far_below_long_ones():
    """Within what drawing few queries costs; replacing forbidden experts by the cheapest would lose far more."""
    table = synthetic_table()
    estimated = kernel_ridge_estimates(table)
    for long, short in (
        (PacedPrice(table, estimated), PacedPrice(table, estimated)),
        (FixedPrice(table, estimated, 64), FixedPrice(table, estimated, 8)),
        (Planned(table, estimated), Planned(table, estimated)),
    ):
        assert play(short, table, 8, 512).mean_score > play(long, table, 64).mean_score - 0.09
