"""Estimates that did not see their own query, and a policy that begins as the rule it is to beat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from agents import Orchestrator
from agents.bid_price import BidPricePolicy, start_as_paced, table_of_estimates, train_actor
from agents.evaluate import evaluate
from agents.policy import describe_policy
from agents.predictor import fit_predictor
from agents.routers import PacedPrice
from leeroo_env import ExpertTable, dynamics
from leeroo_env.builtin import resolve
from leeroo_env.env import spaces
from tests.conftest import random_table


def without_query(table: ExpertTable, row: int) -> ExpertTable:
    split = table.split.clone()
    split[row] = 2
    return replace(table, split=split)


def test_left_out_estimates_are_those_of_a_model_that_never_saw_the_query():
    table = random_table(n=150)
    predictor = fit_predictor(table)
    for i in (0, 17, 49):
        row = int(predictor.rows[i])
        other = fit_predictor(without_query(table, row))
        score, cost = other.predict(table.embeddings[row : row + 1])
        expected = torch.cat([score, cost], dim=1)[0]
        # the mean that estimates shrink to still counts the query: one part in n
        torch.testing.assert_close(predictor.out_of_fold[i], expected, rtol=0.05, atol=2e-2)
        seen = torch.cat(predictor.predict(table.embeddings[row : row + 1]), dim=1)[0]
        error = (predictor.out_of_fold[i] - expected)[:4].abs().mean()
        assert error < 0.3 * (seen - expected)[:4].abs().mean()


def test_estimates_are_better_than_means_on_real_answers():
    table = resolve("tiny")
    predictor, rows = fit_predictor(table), table.rows("test")
    score, cost = predictor.predict(table.embeddings[rows])
    for estimate, truth, mean in (
        (score, table.scores[rows], table.mean_score()),
        (cost, table.costs_usd[rows], table.mean_cost_usd()),
    ):
        assert ((estimate - truth) ** 2).mean() < 0.8 * ((mean - truth) ** 2).mean()


def test_large_tables_are_fitted_on_a_part(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agents.predictor.MAX_CENTRES", 30)
    table = random_table(n=300)
    predictor = fit_predictor(table, seed=1)
    assert len(predictor.rows) == 30 and set(predictor.rows.tolist()) < set(table.rows("train").tolist())
    features = table_of_estimates(table, predictor).embeddings
    assert features.shape == (300, 8) and features.isfinite().all()


def test_the_policy_begins_as_the_paced_rule():
    table = resolve("tiny")
    predictor = fit_predictor(table)
    paced = PacedPrice(table, predictor)
    rules = dynamics.make_rules(table_of_estimates(table, predictor))
    kwargs = {"mean_cost_usd": rules.mean_cost_usd.tolist(), "price_range_usd": list(rules.price_range_usd)}
    policy = BidPricePolicy(*spaces(rules), lambda _: 1e-3, **kwargs)
    start_as_paced(policy, rules, paced)
    agent = Orchestrator(policy, describe_policy(rules, "ppo", kwargs, "bid-price", table), predictor)
    rng = np.random.default_rng(0)
    rows = table.rows("test")[:500]
    queries = rng.integers(1, 200, size=500)
    low, high = rules.price_range_usd
    usd = low * (high / low) ** rng.uniform(0.05, 0.95, size=500) * queries
    x = table.embeddings[rows].float().numpy()
    assert (agent.choose(x, usd, queries) == paced.choose(x, usd, queries)).mean() > 0.98
    test_rules = dynamics.make_rules(table, "test")
    budgets = dynamics.budget_grid(test_rules)
    scores = [evaluate(router, test_rules, budgets, episodes=32).mean_score for router in (agent, paced)]
    assert scores[0] > scores[1] - 0.005


def test_only_the_value_learns_at_first():
    rules = dynamics.make_rules(table_of_estimates(random_table(), fit_predictor(random_table())), horizon=4)
    kwargs = {"mean_cost_usd": rules.mean_cost_usd.tolist(), "price_range_usd": list(rules.price_range_usd)}
    policy = BidPricePolicy(*spaces(rules), lambda _: 1e-3, **kwargs)
    for on in (False, True):
        train_actor(policy, on)
        policy.optimizer.zero_grad()
        observations = torch.rand(16, 10)
        values, log_probs, _ = policy.evaluate_actions(observations, torch.zeros(16, dtype=torch.int64))
        (values.mean() + log_probs.mean()).backward()
        assert all(p.grad is not None for p in policy.mlp_extractor.value.parameters())
        assert all((p.grad is not None) == on for p in policy.mlp_extractor.price.parameters())


def test_no_budget_is_too_small_or_too_large_to_choose(synthetic: Path, tmp_path: Path):
    config = train.Config(str(synthetic), timesteps=2_000, n_envs=8, run_dir=str(tmp_path / "run"))
    assert train.run(config) == 0
    agent = Orchestrator.load(tmp_path / "run")
    x = ExpertTable.load(synthetic).embeddings[:50].numpy()
    for usd in (0.0, 1e-12, 1e-4, 1.0, 1e9):
        for queries in (0, 1, 2, 1_000_000):
            assert set(agent.choose(x, usd, queries)) <= {0, 1, 2}
    assert set(agent.choose(x, 64e-4 + 1e-9, 64)) == {0}, "the reserve for the others is kept"
