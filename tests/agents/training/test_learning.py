"""The agent learns what can be learnt, and nothing where there is nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from agents import Orchestrator
from agents.algorithms import AlgorithmName
from agents.evaluation.evaluate import evaluate
from agents.routers import BestSingle, Context, FixedMixture, Router
from agents.training.config import PolicyKind, TrainConfig
from leeroo_env import ExpertTable, dynamics
from tests.synthetic import synthetic_optimum, synthetic_table


class Chance(Router):
    """Any expert whose mean cost fits what is left: what an untrained policy does."""

    def __init__(self, table: ExpertTable):
        self.mean_cost_usd, self.generator = table.mean_cost_usd(), torch.Generator().manual_seed(0)

    def choose(self, context: Context) -> torch.Tensor:
        mask = dynamics.action_mask(self.mean_cost_usd, context.remaining_usd)
        return torch.multinomial(mask.float(), 1, generator=self.generator).squeeze(1)


def learn(table: ExpertTable, where: Path, policy: PolicyKind, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Test scores by budget [6] of the trained agent and of the best router that ignores the query; the budgets."""
    table.save(where / "table")
    config = TrainConfig(str(where / "table"), policy=policy, timesteps=steps, n_envs=64, horizon=32)
    assert train.run(replace(config, run_dir=str(where / "run"))) == 0
    rules = dynamics.make_rules(table, "test")
    budgets = dynamics.budget_grid(rules)
    agent = evaluate(Orchestrator.load(where / "run").router(rules.table), rules, budgets, episodes=64)
    others: list[Router] = [BestSingle(table), FixedMixture(table)]
    simple = [evaluate(router, rules, budgets, episodes=64).score for router in others]
    return agent.score, np.max(simple, axis=0), np.array(budgets)


@pytest.mark.parametrize(("policy", "steps"), [("mlp", 100_000), ("bid-price", 50_000)])
def test_comes_near_the_known_optimum(policy: PolicyKind, steps: int, tmp_path: Path):
    agent, simple, budgets = learn(synthetic_table(1500), tmp_path, policy, steps)
    optimum = np.array([synthetic_optimum(b) for b in budgets])
    assert agent.mean() > 0.95 * optimum.mean(), (agent, optimum)
    assert (agent > simple + 0.05).all(), (agent, simple)
    assert (agent < optimum + 0.03).all(), "nothing beats the optimum but by the luck of the queries"


@pytest.mark.parametrize("policy", ["mlp", "bid-price"])
def test_gains_nothing_where_answers_belong_to_other_queries(policy: PolicyKind, tmp_path: Path):
    """With the answers permuted over queries, embeddings say nothing: no better than a mixture that ignores them."""
    table = synthetic_table(1500)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    permuted = ExpertTable.from_arrays(
        "permuted",
        table.experts,
        table.embeddings.numpy(),
        table.scores[order].numpy(),
        table.costs_usd[order].numpy(),
    )
    agent, simple, _ = learn(permuted, tmp_path, policy, steps=50_000)
    assert agent.mean() < simple.mean() + 0.02, (agent, simple)


@pytest.mark.parametrize("algorithm", ["a2c", "maskable_ppo", "trpo", "dqn", "qrdqn"])
def test_every_algorithm_learns_something(algorithm: AlgorithmName, small_synthetic: Path, tmp_path: Path):
    """Better than chance at all six budgets together, after a short training; also: each trains, saves and loads."""
    steps, n_envs = (10_000, 0) if algorithm in ("dqn", "qrdqn") else (30_000, 64)
    config = TrainConfig(str(small_synthetic), algo=algorithm, policy="mlp", timesteps=steps, n_envs=n_envs)
    agent, chance = agent_and_chance(config, tmp_path / "run")
    assert agent > chance + 0.1


def test_a2c_trains_the_bid_price_policy_too(small_synthetic: Path, tmp_path: Path):
    config = TrainConfig(str(small_synthetic), algo="a2c", timesteps=20_000, n_envs=32)
    agent, _ = agent_and_chance(config, tmp_path / "run")
    budgets = dynamics.budget_grid(dynamics.make_rules(synthetic_table(), "test"))
    assert agent > 0.95 * np.mean([synthetic_optimum(b) for b in budgets])


def agent_and_chance(config: TrainConfig, run_dir: Path) -> tuple[float, float]:
    """Mean test scores over six budgets, in episodes of 16 queries."""
    assert train.run(replace(config, horizon=16, run_dir=str(run_dir))) == 0
    table = ExpertTable.load(config.table)
    rules = dynamics.make_rules(table, "test", 16)
    budgets = dynamics.budget_grid(rules)
    routers = (Orchestrator.load(run_dir).router(rules.table), Chance(table))
    agent, chance = (evaluate(router, rules, budgets, episodes=64).mean_score for router in routers)
    return agent, chance
