"""The bid-price policy starts as the solution of the dynamic program, and takes in new experts without training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from agents import Orchestrator
from agents.estimators.base import Estimates
from agents.estimators.ensemble import fit_predictor, table_estimates
from agents.evaluation.evaluate import evaluate
from agents.policies.bid_price import BidPricePolicy, estimate_features
from agents.policies.budget_value import fit_budget_value
from agents.policies.description import PolicyDescription, describe_policy
from agents.routers import Planned
from agents.routers.policy import PolicyRouter
from agents.training.config import TrainConfig
from agents.training.run_dir import config_of
from leeroo_env import ExpertTable, InputError, dynamics
from leeroo_env.builtin import resolve
from leeroo_env.env import spaces
from tests.conftest import random_table
from tests.synthetic import synthetic_table


def policy_for(rules: dynamics.Rules) -> tuple[BidPricePolicy, dict]:
    kwargs: dict[str, Any] = {
        "mean_cost_usd": rules.cost_scale.mean_usd.tolist(),
        "price_range_usd": [rules.cost_scale.low_usd, rules.cost_scale.high_usd],
        "horizon": rules.horizon,
    }
    return BidPricePolicy(*spaces(rules), lambda _: 1e-3, **kwargs), kwargs


def started(table: ExpertTable) -> tuple[BidPricePolicy, PolicyDescription, Estimates]:
    """The untrained policy for a table, its description, and the estimates."""
    predictor = fit_predictor(table)
    estimates = table_estimates(table, predictor)
    rules = dynamics.make_rules(table, horizon=8, features=estimate_features(estimates, table.cost_scale()))
    policy, kwargs = policy_for(rules)
    policy.start_from(fit_budget_value(table, predictor.rows, predictor.out_of_fold))
    return policy, describe_policy(rules, "ppo", kwargs, "bid-price"), estimates


def test_the_policy_starts_as_the_dynamic_program():
    table = resolve("tiny")
    policy, description, estimates = started(table)
    features = estimate_features(estimates, table.cost_scale())
    agent, planned = PolicyRouter(policy, description, features), Planned(table, estimates)
    rules = dynamics.make_rules(table, "test", 40)
    budgets = dynamics.budget_grid(rules)
    first, second = (evaluate(router, rules, budgets, episodes=32) for router in (agent, planned))
    assert (first.chosen == second.chosen).mean() > 0.98
    np.testing.assert_allclose(first.score, second.score, atol=0.01)


def test_the_value_starts_as_the_budget_value():
    table = synthetic_table()
    policy, description, estimates = started(table)
    rules = dynamics.make_rules(table, "test", 64, features=estimate_features(estimates, table.cost_scale()))
    keys = dynamics.episode_keys(torch.zeros(64, dtype=torch.int64), torch.arange(64))
    state = dynamics.sample_episodes(rules, keys, torch.full((64,), 4e-4))
    with torch.no_grad():
        expected = policy.predict_values(dynamics.observe(rules, state)).mean()
    router = PolicyRouter(policy, description, rules.features)
    played = evaluate(router, rules, [4e-4], 64).score[0] * 64
    assert float(expected) == pytest.approx(played, rel=0.1)


def test_only_the_value_learns_at_first():
    table = random_table()
    policy, _, _ = started(table)
    for on in (False, True):
        policy.train_actor(on)
        policy.optimizer.zero_grad()
        values, log_probs, _ = policy.evaluate_actions(torch.rand(16, 10), torch.zeros(16, dtype=torch.int64))
        (values.mean() + log_probs.mean()).backward()
        assert all(p.grad is not None for p in policy.network.critic.parameters())
        assert all((p.grad is not None) == on for p in policy.network.bias.parameters())


def test_no_budget_is_too_small_or_too_large_to_choose(small_synthetic: Path, bid_price_run: Path):
    agent = Orchestrator.load(bid_price_run)
    x = ExpertTable.load(small_synthetic).embeddings[:50].numpy()
    for usd in (0.0, 1e-12, 1e-4, 1.0, 1e9):
        for queries in (0, 1, 2, 1_000_000):
            assert set(agent.choose(x, usd, queries)) <= {0, 1, 2}
    assert set(agent.choose(x, 1e-4, 64)) == {0}, "nothing else fits"


def test_hiding_the_budget_hurts(small_synthetic: Path, bid_price_run: Path, tmp_path: Path):
    config = replace(config_of(bid_price_run), hide_budget=True, run_dir=str(tmp_path / "run"))
    assert train.run(config) == 0
    table = ExpertTable.load(small_synthetic)
    rules = dynamics.make_rules(table, "test")
    routers = [Orchestrator.load(run_dir).router(table) for run_dir in (bid_price_run, tmp_path / "run")]
    shown, hidden = (evaluate(router, rules, dynamics.budget_grid(rules), 32).mean_score for router in routers)
    assert hidden < shown - 0.03, (shown, hidden)


@pytest.fixture(scope="module")
def without_coder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the synthetic table without the expert that alone answers code cheaply."""
    where = tmp_path_factory.mktemp("newcomer")
    synthetic_table().select(["small", "large"]).save(where / "table")
    config = TrainConfig(str(where / "table"), timesteps=10_000, n_envs=32, run_dir=str(where / "run"))
    assert train.run(config) == 0
    return where / "run"


def test_a_new_expert_is_used_where_it_is_good(without_coder: Path, tmp_path: Path):
    table = synthetic_table()
    rules = dynamics.make_rules(table, "test")
    budgets = dynamics.budget_grid(rules)
    before = Orchestrator.load(without_coder)
    two = table.select(["small", "large"])
    old = evaluate(before.router(two), dynamics.make_rules(two, "test"), budgets, 64)
    rows = table.rows("train")[:300]
    before.add_expert("coder", table.embeddings[rows], table.scores[rows, 1], table.costs_usd[rows, 1])
    before.save(tmp_path)
    grown = Orchestrator.load(tmp_path)
    assert grown.experts == ["small", "large", "coder"]
    three = table.select(["small", "large", "coder"])
    new = evaluate(grown.router(three), dynamics.make_rules(three, "test"), budgets, 64)
    assert new.mean_score > old.mean_score + 0.03
    code = np.array(table.queries["domain"].to_pylist()) == "code"
    asked = code[new.rows[2]]
    assert (new.chosen[2][asked] == 2).mean() > 0.5 > (new.chosen[2][~asked] == 2).mean() + 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "large"}, "expert large: there is already one"),
        ({"embeddings": np.zeros((3, 5))}, r"embeddings are \[3, 5\]"),
        ({"scores": np.full(3, 2.0)}, "scores 0 to 1"),
        ({"scores": np.zeros(4)}, r"must be \[3\]"),
        ({"costs_usd": np.full(3, -1.0)}, "must not be negative"),
        ({"texts": ["one"]}, "1 texts for 3 embeddings"),
    ],
)
def test_a_senseless_expert_is_refused(without_coder: Path, change: dict, message: str):
    outcomes = {"name": "new", "embeddings": np.ones((3, 16)), "scores": np.zeros(3), "costs_usd": np.ones(3)}
    with pytest.raises(InputError, match=message):
        Orchestrator.load(without_coder).add_expert(**{**outcomes, **change})
