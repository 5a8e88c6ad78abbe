"""Pools with more experts than are considered for a query: what is left out hardly counts, and memory stays low."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.estimators import Estimates
from agents.estimators.base import MAX_CONSIDERED
from agents.policies import answer_model, budget_value, call_value
from agents.policies.answer_model import AnswerModel, Calls
from agents.policies.budget_value import BudgetValue, solve_one_call
from agents.policies.call_value import CallValue
from agents.routers import cascade_routing, panels
from agents.routers.cascade_routing import CascadeRouting
from agents.routers.panels import shortlist
from agents.routers.sequences import best_at_prices
from leeroo_env import ExpertTable

K = 60
ROOT = Path(__file__).parents[3]


def large_table(n: int = 90, k: int = K, seed: int = 0) -> ExpertTable:
    """Experts that are good at different queries, at costs from 1 to 300; equal answers are right."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8))
    skill = rng.normal(size=k)
    right = rng.random((n, k)) < 1 / (1 + np.exp(-(skill + x @ rng.normal(size=(8, k)) / 2)))
    answers = np.where(right, 0, rng.integers(1, 6, size=(n, k))).astype(str).astype(object)
    costs = 1e-5 * 300 ** ((skill - skill.min()) / np.ptp(skill)) * np.exp(rng.normal(size=(n, k)) / 5)
    split = [("train", "val", "test")[i % 3] for i in range(n)]
    names = [f"expert-{i}" for i in range(k)]
    return ExpertTable.from_arrays("large", names, x, right.astype(float), costs, answers=answers, split=split)


@pytest.fixture(scope="module")
def table() -> ExpertTable:
    return large_table()


@pytest.fixture(scope="module")
def estimates(table: ExpertTable) -> Estimates:
    """Noisy ones, that differ by query."""
    noise = torch.rand(table.scores.shape, generator=torch.Generator().manual_seed(0))
    return Estimates(0.5 * table.scores + 0.5 * noise, table.costs_usd)


@pytest.fixture(scope="module")
def plan(estimates: Estimates, table: ExpertTable) -> BudgetValue:
    return solve_one_call(estimates, torch.tensor([[0.8], [1.2]]).expand(-1, K), table.cost_scale())


def test_the_budget_value_is_that_of_all_experts(
    estimates: Estimates, table: ExpertTable, plan: BudgetValue, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(budget_value, "MAX_CONSIDERED", K)
    whole = solve_one_call(estimates, torch.tensor([[0.8], [1.2]]).expand(-1, K), table.cost_scale())
    assert (plan.value <= whole.value + 1e-4).all(), "more experts are never worth less"
    assert float((whole.value - plan.value).max() / whole.value.max()) < 0.01


def test_the_same_experts_are_chosen_by_price(
    estimates: Estimates, table: ExpertTable, plan: BudgetValue, monkeypatch: pytest.MonkeyPatch
):
    usd = torch.logspace(-4, -1, len(estimates))[:, None]
    queries = torch.full_like(usd, 20.0)
    allowed = table.mean_cost_usd() <= usd
    allowed[:, int(table.mean_cost_usd().argmin())] = True
    chosen = []
    for most in (MAX_CONSIDERED, K):
        monkeypatch.setattr(budget_value, "MAX_CONSIDERED", most)
        affordable, price, open_, _ = plan.considered_terms(estimates.score, estimates.cost_usd, usd, queries, allowed)
        assert open_.sum(dim=1).max() <= most and not (open_ & ~allowed).any()
        chosen.append((estimates.score * affordable - price).masked_fill(~open_, -torch.inf).argmax(dim=1))
    assert float((chosen[0] == chosen[1]).float().mean()) > 0.95


def some_calls(n: int) -> Calls:
    generator = torch.Generator().manual_seed(1)
    asked = torch.rand(n, K, generator=generator).argsort(dim=1)[:, :3]
    made = torch.arange(n) % 4
    asked = asked.masked_fill(torch.arange(3) >= made[:, None], -1)
    group = torch.tensor([[0, 0, 2]]).expand(n, -1).masked_fill(asked < 0, -1)
    return Calls(asked, group, made)


def test_a_posterior_among_some_is_that_among_all(estimates: Estimates):
    torch.manual_seed(0)
    model = AnswerModel(K)
    with torch.no_grad():
        model.loading.uniform_(0.2, 1.5), model.trust.uniform_(0.4, 1.2), model.silence.uniform_(0, 0.3)
    chance, calls = estimates.reliability(), some_calls(len(estimates))
    votes = torch.rand_like(chance) + 0.1
    among = torch.rand(chance.shape, generator=torch.Generator().manual_seed(2)).argsort(dim=1)[:, :10]
    whole, part = model.posterior(chance, votes, calls), model.posterior(chance, votes, calls, among)
    torch.testing.assert_close(part.joint, whole.joint)
    torch.testing.assert_close(part.expert_chance(), whole.expert_chance().gather(1, among))
    some = among[:, 3:7]
    torch.testing.assert_close(part.right_of(some), whole.right_of(some))
    after = [model.leader_chance_after(p, some, votes.gather(1, some)) for p in (part, whole)]
    torch.testing.assert_close(*after)


def test_the_best_next_call_is_that_among_all(estimates: Estimates, monkeypatch: pytest.MonkeyPatch):
    value, chance, calls = CallValue(K, 4), estimates.reliability(), some_calls(len(estimates))
    price = 0.3 * estimates.cost_usd / estimates.cost_usd.max()
    allowed = torch.ones_like(chance, dtype=torch.bool)
    allowed.scatter_(1, calls.asked.clamp(min=0), calls.asked < 0)
    best = []
    for most in (MAX_CONSIDERED, K):
        monkeypatch.setattr(call_value, "MAX_CONSIDERED", most)
        found = value(chance, price, calls, allowed)
        place = (found.gain - price.gather(1, found.experts)).argmax(dim=1, keepdim=True)
        best.append(found.experts.gather(1, place))
    assert float((best[0] == best[1]).float().mean()) > 0.95


def test_cascade_routing_asks_as_if_all_were_considered(
    table: ExpertTable, estimates: Estimates, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cascade_routing, "ROWS", 10)
    monkeypatch.setattr(cascade_routing, "N_PRICES", 4)
    router = CascadeRouting(table, estimates, 3, answer_model=AnswerModel(K).requires_grad_(False))
    calls = some_calls(len(estimates))
    price, scale = torch.full((len(estimates),), 100.0), torch.full((len(estimates),), 0.5)
    found = []
    for most in (MAX_CONSIDERED, K):
        monkeypatch.setattr(cascade_routing, "MAX_CONSIDERED", most)
        found.append(router.next_expert(estimates, price, scale, calls, torch.ones_like(estimates.score).bool()))
    same = (found[0][0] == found[1][0]) & (found[0][1] == found[1][1])
    assert float(same.float().mean()) > 0.9
    assert not any((found[0][0] == calls.asked[:, c]).any() for c in range(3)), "nobody is asked twice"


def test_a_shortlist_of_many_holds_the_best_and_the_cheapest(monkeypatch: pytest.MonkeyPatch):
    table = large_table(600)
    prices = torch.logspace(5, 0, 40)
    arguments = table.scores, table.costs_usd, table.answer_ids.long(), prices, 10
    useful = shortlist(*arguments)
    assert useful.sum() == 10
    assert useful[int(table.scores.mean(dim=0).argmax())] and useful[int(table.costs_usd.mean(dim=0).argmin())]
    monkeypatch.setattr(panels, "MAX_CONSIDERED", K)
    assert (useful & shortlist(*arguments)).sum() >= 5, "most are those that are found among all"


def test_batches_shrink_with_the_pool():
    assert answer_model.batch_size(12) == answer_model.batch_size(42) == answer_model.BATCH
    assert answer_model.batch_size(300) * 300 <= answer_model.BATCH_SCORES


def test_policies_of_few_among_many_experts():
    """Experts that no list holds change nothing."""
    order = torch.tensor([[10, -1], [30, -1], [10, 20], [10, 30]])
    score, cost = torch.tensor([0.1, 0.9, 0.6, 1.0]), torch.tensor([1.0, 10.0, 3.0, 11.0])
    mean_cost = torch.linspace(2, 9, 40)
    mean_cost[[10, 20, 30]] = torch.tensor([1.0, 2.5, 10.0])
    policies = best_at_prices(order, score, cost, torch.logspace(2, -3, 50), mean_cost)
    net = score.double() - torch.logspace(2, -3, 50).double()[:, None] * cost.double()
    rank = mean_cost.argsort().argsort()[order.clamp(min=0)].masked_fill(order < 0, 0).amax(dim=1)
    for n in range(40):
        expected = net.masked_fill(rank > n, -torch.inf).argmax(dim=1)
        assert policies.tried[policies.hull[n]][1:].tolist() == expected[1:].tolist()


MEMORY = """
import resource, sys, torch
from agents.evaluation.bounds import hindsight_bound
from agents.routers.panels import shortlist
from leeroo_env.dynamics import make_rules
from tests.agents.policies.test_large_pools import large_table
torch.set_num_threads(1)
table = large_table(120, 300)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shortlist(table.scores, table.costs_usd, table.answer_ids.long(), torch.logspace(5, 0, 80), 10)
hindsight_bound(make_rules(table, "test", 40), [1e-4, 1e-3, 1e-2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6)
"""


def test_three_hundred_experts_take_little_memory():
    run = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 0.8, "GB; a table of all pairs with a third expert would take 10"
