"""The routers that ask several experts about a query do what they are named for, and do it well."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.estimators import Estimates
from agents.evaluation.bounds import hindsight_bound
from agents.evaluation.evaluate import Result, evaluate
from agents.policies.answer_model import AnswerModel
from agents.routers import Context, PacedPrice, Router, multi_call_routers
from agents.routers.panels import Panels, describe, fit_logistic, fit_ridge, shortlist
from agents.routers.sequences import best_at_prices
from leeroo_env import ExpertTable, dynamics
from leeroo_env.dynamics import Rules, count_votes

NAMES = ("majority", "cascade", "cascade routing", "two-stage trees")
CHEAP, DEAR = 1.0, 20.0


def telling_table(n: int = 1200, chance: float = 0.55, seed: int = 0) -> ExpertTable:
    """Three cheap experts that agree only where they are right, and a dear one that always is.

    Embeddings tell nothing. All three are right on `chance` of the queries; on the others each says something else.
    """
    rng = np.random.default_rng(seed)
    right = rng.random(n) < chance
    scores = np.ones((n, 4))
    scores[:, :3] = right[:, None]
    answers = [["yes"] * 4 if ok else ["a", "b", "c", "yes"] for ok in right]
    costs = np.broadcast_to([CHEAP, CHEAP * 1.01, CHEAP * 1.02, DEAR], (n, 4))
    return ExpertTable.from_arrays(
        "telling",
        ["one", "two", "three", "dear"],
        rng.normal(size=(n, 3)).astype(np.float32),
        scores,
        costs,
        answers=answers,
        split=[("train", "train", "val", "test")[i % 4] for i in range(n)],
    )


def wild_table(n: int = 240, k: int = 5, seed: int = 0, missing: float = 0.2, zero: bool = False) -> ExpertTable:
    """Right answers are equal, some others too, some are missing; costs vary, the last are the dear ones."""
    rng = np.random.default_rng(seed)
    right = rng.random((n, k)) < np.linspace(0.3, 0.8, k)
    said = np.where(right, "right", rng.choice(["x", "y", "z"], size=(n, k))).astype(object)
    said[(rng.random((n, k)) < missing) & ~right] = None
    costs = rng.uniform(0.2, 1.8, size=(n, k)) * 1e-4 * 3.0 ** np.arange(k)
    costs[:, 0] *= not zero
    return ExpertTable.from_arrays(
        "wild",
        [f"e{i}" for i in range(k)],
        rng.normal(size=(n, 4)).astype(np.float32),
        right.astype(float),
        costs,
        answers=said.tolist(),
        split=[("train", "val", "test")[i % 3] for i in range(n)],
    )


def means(table: ExpertTable) -> Estimates:
    """What is known of experts without looking at queries."""
    score, cost_usd = (x.expand(len(table), -1).contiguous() for x in (table.mean_score(), table.mean_cost_usd()))
    return Estimates(score, cost_usd)


def quick_routers(table: ExpertTable, estimates: Estimates, max_calls: int) -> dict[str, Router]:
    """With a model of agreement as it is before fitting, which takes seconds."""
    return multi_call_routers(table, estimates, max_calls, answer_model=AnswerModel(len(table.experts)))


def rules_of(table: ExpertTable, estimates: Estimates, max_calls: int, horizon: int = 16) -> Rules:
    return dynamics.make_rules(table, "test", horizon, max_calls=max_calls, reliability=estimates.reliability())


@pytest.fixture(scope="module")
def telling() -> tuple[ExpertTable, Rules, dict[str, Router]]:
    table = telling_table()
    estimates = means(table)
    return table, rules_of(table, estimates, 3, 60), multi_call_routers(table, estimates, 3)


@pytest.fixture(scope="module")
def wild() -> tuple[ExpertTable, Rules, dict[str, Router]]:
    table = wild_table()
    estimates = means(table)
    return table, rules_of(table, estimates, 4), quick_routers(table, estimates, 4)


@pytest.mark.parametrize("name", ["cascade", "cascade routing", "two-stage trees"])
def test_the_dear_one_is_asked_where_the_cheap_ones_differ(telling, name: str):
    """Two cheap ones and, on 45 of 100 queries, the dear one: all right at about 11 a query."""
    table, rules, routers = telling
    result = evaluate(routers[name], rules, [CHEAP * 2.1 + DEAR * 0.6], episodes=60)
    wrong = 1 - float(table.scores[rules.rows, 0].mean())
    assert result.score[0] > 0.985
    assert result.calls[0, 3] == pytest.approx(wrong, abs=0.04), "never where they agree"
    assert result.cost_usd[0] < CHEAP * 3 + DEAR * (wrong + 0.04)


@pytest.mark.parametrize("name", ["cascade", "two-stage trees"])
def test_with_half_the_money_half_of_the_gain_is_bought(telling, name: str):
    """One call at a time reaches at best a lottery between cheap and dear."""
    table, rules, routers = telling
    budget = CHEAP * 2.1 + DEAR * 0.22
    lottery = 0.55 + 0.45 * (budget - CHEAP) / (DEAR - CHEAP)
    assert evaluate(routers[name], rules, [budget], episodes=60).score[0] > lottery + 0.06
    assert evaluate(PacedPrice(table, means(table)), rules, [budget], episodes=60).score[0] < lottery + 0.04


def test_a_majority_asks_all_of_its_panel_and_no_less_than_the_best_panel():
    """Three experts that err apart: their vote is worth more than any of them."""
    rng = np.random.default_rng(1)
    right = rng.random((900, 4)) < [0.7, 0.7, 0.7, 0.7]
    said = np.where(right, "right", rng.permuted(np.tile(list("abcd"), (900, 1)), axis=1)).astype(object)
    table = ExpertTable.from_arrays(
        "apart",
        list("abcd"),
        np.ones((900, 2)),
        right.astype(float),
        np.broadcast_to([1.0, 1.0, 1.0, 50.0], (900, 4)),
        answers=said.tolist(),
        split=[("train", "val", "test")[i % 3] for i in range(900)],
    )
    estimates = means(table)
    router = quick_routers(table, estimates, 3)["majority"]
    result = evaluate(router, rules_of(table, estimates, 3, 60), [3.1], episodes=20)
    assert result.calls[0].tolist() == pytest.approx([1, 1, 1, 0], abs=0.05)
    vote = float(table.scores[table.rows("test"), :3].mean())
    assert result.score[0] > vote + 0.05


class Watched(Router):
    """A router under watch: asks nobody twice, and does not deliver what nobody was asked for."""

    def __init__(self, router: Router):
        self.router, self.features, self.max_calls = router, router.features, router.max_calls
        self.k = router.features.score.shape[1]  # type: ignore[union-attr]

    def begin(self, budgets_usd_per_query: Tensor) -> None:
        self.router.begin(budgets_usd_per_query)

    def choose(self, context: Context) -> Tensor:
        calls, chosen = context.calls, self.router.choose(context)
        assert calls is not None
        assert chosen.shape == (len(context),) and chosen.dtype == torch.int64
        assert bool(((chosen >= 0) & (chosen <= self.k)).all())
        assert not bool((calls.asked == chosen[:, None]).any()), "asked twice"
        assert not bool(((chosen == self.k) & (calls.made == 0)).any()), "delivers before the first call"
        return chosen


def sound(router: Router, rules: Rules, budgets: list[float]) -> Result:
    """Plays under watch, twice."""
    once, again = (evaluate(Watched(router), rules, budgets, episodes=12) for _ in range(2))
    assert (once.cost_usd <= np.array(budgets) * (1 + 1e-9)).all()
    assert (once.chosen == again.chosen).all() and (once.scored == again.scored).all()
    assert once.calls.sum(axis=1).max() <= router.max_calls + 1e-9
    return once


@pytest.mark.parametrize("name", NAMES)
def test_budgets_hold_and_nobody_is_asked_twice(wild, name: str):
    _, rules, routers = wild
    result = sound(routers[name], rules, [*dynamics.budget_grid(rules), 1.0])
    assert result.cut_off.max() < 0.25
    assert result.score[-1] > result.score[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: (wild_table(90, 2, 1), 2),
        lambda: (wild_table(90, 3, 2), 3),
        lambda: (wild_table(90, 6, 3, missing=1.0), 2),
        lambda: (wild_table(90, 4, 4, zero=True), 3),
        lambda: (wild_table(120, 7, 5), 6),
    ],
    ids=["K = M = 2", "K = M = 3", "wrong answers are missing", "a free expert", "M = 6"],
)
def test_few_experts_and_missing_answers(make: Callable):
    table, max_calls = make()
    estimates = means(table)
    rules = rules_of(table, estimates, max_calls, 6)
    for router in quick_routers(table, estimates, max_calls).values():
        sound(router, rules, [*dynamics.budget_grid(rules, 3), 1e3])


@pytest.mark.parametrize("name", NAMES)
def test_the_same_routers_are_built_twice(wild, name: str):
    table, rules, routers = wild
    again = quick_routers(table, means(table), 4)[name]
    budgets = dynamics.budget_grid(rules, 2)
    assert (evaluate(again, rules, budgets, 6).scored == evaluate(routers[name], rules, budgets, 6).scored).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_reserve_is_kept(name: str):
    """At fixed prices, from one cheapest call a query on, nothing is refused and every query is answered."""
    table = telling_table(400)
    estimates = means(table)
    router = quick_routers(table, estimates, 3)[name]
    result = evaluate(router, rules_of(table, estimates, 3, 12), [CHEAP, 1.5, 3.0, 7.0, 25.0], episodes=30)
    assert (result.cut_off == 0).all() and result.cost_usd[0] == pytest.approx(CHEAP)
    assert (result.calls.sum(axis=1) >= 1).all()


@pytest.mark.parametrize("seed", range(4))
def test_hindsight_is_above_all_of_them(seed: int):
    table = wild_table(60, 3, seed)
    estimates = means(table)
    rules = rules_of(table, estimates, 3, 10)
    budgets = dynamics.budget_grid(rules, 4)
    bound = hindsight_bound(rules, budgets, episodes=8)
    for name, router in quick_routers(table, estimates, 3).items():
        result = evaluate(router, rules, budgets, episodes=8)
        by_episode = (r.scored.reshape(4, 8, 10).sum(axis=2) for r in (result, bound))
        played, most = by_episode
        assert (played <= most + 1e-6).all(), name


@pytest.mark.parametrize("seed", range(3))
def test_hindsight_is_above_the_best_calls_there_are(seed: int):
    """By trying every set of calls about each of three queries, in every order."""
    table = wild_table(30, 3, seed)
    rules = rules_of(table, means(table), 3, 3)
    budget = float(table.mean_cost_usd().median())
    bound = hindsight_bound(rules, [budget], episodes=4)
    plans = [p for m in (1, 2, 3) for p in itertools.permutations(range(3), m)]
    for episode in range(4):
        rows = bound.rows[0].reshape(4, 3)[episode]
        options = []
        for row in rows.tolist():
            worth = [(0.0, 0.0)]
            for plan in plans:
                asked = torch.tensor([plan])
                votes = dynamics.vote_weight(rules.reliability[row, asked])
                leader = int(count_votes(asked, asked >= 0, table.answer_ids[row, asked].long(), votes).leader)
                worth.append((float(table.scores[row, leader]), float(table.costs_usd[row, asked].sum())))
            options.append(worth)
        sums = np.array([np.sum(choice, axis=0) for choice in itertools.product(*options)])
        best = sums[sums[:, 1] <= budget * 3, 0].max()
        assert best <= bound.scored[0].reshape(4, 3)[episode].sum() + 1e-6


def test_panels_deliver_what_the_rules_say():
    """Every panel on every training query, one at a time by `dynamics.step`."""
    table = wild_table(45, 4)
    estimates = means(table)
    panels = Panels(table, estimates, 3)
    assert len(panels.members) == 4 + 6 + 4
    rules = dynamics.make_rules(table, "train", 15, max_calls=3, reliability=estimates.reliability())
    state = dynamics.sample_episodes(rules, torch.zeros(1, dtype=torch.int64), torch.tensor([1.0]))
    place = {row: i for i, row in enumerate(panels.rows.tolist())}
    for i, members in enumerate(panels.members.tolist()):
        now = state
        for row in state.rows[0].tolist():
            score = cost_usd = 0.0
            for k in [*(k for k in members if k >= 0), *([4] if -1 in members else [])]:
                now, outcome = dynamics.step(rules, now, torch.tensor([k]))
                score, cost_usd = score + float(outcome.score), cost_usd + float(outcome.cost_usd)
            assert score == float(panels.score[i, place[row]])
            assert cost_usd == pytest.approx(float(panels.cost_usd[i, place[row]]), rel=1e-5)


def test_regressions_are_those_of_the_textbook():
    """Against scikit-learn; what is told of a fold comes from the others."""
    from sklearn.linear_model import LogisticRegression, Ridge

    from agents.routers.panels import RIDGE

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 300, 4, generator=generator)
    x[..., 0] = 1
    y = (x[..., 1] + torch.randn(1, 300, generator=generator) > 0).float()
    fold = torch.arange(300) % 5
    for fit, model in ((fit_logistic, LogisticRegression(C=1 / RIDGE, tol=1e-8)), (fit_ridge, Ridge(alpha=RIDGE))):
        weights, told = fit(x, y, fold)
        model.fit(x[0, :, 1:].numpy(), y[0].numpy())
        assert weights[0, 1:].numpy() == pytest.approx(model.coef_.ravel(), abs=2e-3)
        model.fit(x[0, fold != 0, 1:].numpy(), y[0, fold != 0].numpy())
        other = x[0, fold == 0, 1:].numpy() @ model.coef_.ravel() + np.ravel(model.intercept_)
        assert told[0, fold == 0].numpy() == pytest.approx(other, abs=5e-3)


def test_useless_experts_are_not_considered():
    """One that is dear and always wrong."""
    table = wild_table(600, 6, missing=0.0)
    scores, costs, ids = table.scores.clone(), table.costs_usd.clone(), table.answer_ids
    scores[:, 4], costs[:, 4] = 0.0, 1.0
    useful = shortlist(scores, costs, ids, torch.logspace(4, 0, 20), 4)
    assert useful.sum() == 4 and not useful[4] and useful[0] and useful[5]


def test_policies_are_those_on_the_hull():
    order = torch.tensor([[0, -1], [1, -1], [2, -1], [0, 1], [0, 2]])
    score, cost = torch.tensor([0.1, 0.2, 0.9, 0.6, 1.0]), torch.tensor([1.0, 2.0, 10.0, 3.0, 11.0])
    policies = best_at_prices(order, score, cost, torch.logspace(2, -3, 50), torch.tensor([1.0, 2.0, 10.0]))
    assert [policies.tried[row.unique()].tolist() for row in policies.hull] == [[0], [0, 3], [0, 3, 4]]
    assert bool((policies.cost_usd[policies.hull].diff(dim=1) >= 0).all())


def test_answers_are_described_alike_in_any_order():
    """The calls as a router sees them carry other group numbers than in training; what is told must not change."""
    chance = torch.tensor([[0.6, 0.3, 0.8]])
    asked = torch.tensor([[0, 1, 2]])
    made = torch.ones(1, 3, dtype=torch.bool)
    told = []
    for ids in ([4, 4, 7], [1, 1, 0]):
        ids = torch.tensor([ids])
        told.append(describe(count_votes(asked, made, ids, dynamics.vote_weight(chance)), chance, made, ids >= 0))
    assert told[0].tolist() == told[1].tolist()
