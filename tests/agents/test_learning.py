"""The agent learns what can be learnt, and nothing where there is nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import train
from agents import Orchestrator
from agents.evaluate import evaluate
from agents.routers import simple_routers
from leeroo_env import ExpertTable, dynamics
from tests.synthetic import synthetic_optimum, synthetic_table


def learn(table: ExpertTable, where: Path, steps: int = 300_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Test scores by budget [6] of agent and best simple router after train.py's default training; the budgets."""
    table.save(where / "table")
    assert train.run(train.Config(table=str(where / "table"), timesteps=steps, run_dir=str(where / "run"))) == 0
    rules = dynamics.make_rules(table, "test")
    budgets = dynamics.budget_grid(rules)
    agent = evaluate(Orchestrator.load(where / "run"), rules, budgets, episodes=64)
    simple = [evaluate(router, rules, budgets, episodes=64).score for router in simple_routers(table).values()]
    return agent.score, np.max(simple, axis=0), np.array(budgets)


def test_comes_near_the_known_optimum(tmp_path: Path):
    agent, simple, budgets = learn(synthetic_table(), tmp_path)
    optimum = np.array([synthetic_optimum(b) for b in budgets])
    assert agent.mean() > 0.95 * optimum.mean(), (agent, optimum)
    assert (agent > simple + 0.05).all(), (agent, simple)
    assert (agent < optimum + 0.03).all(), "nothing beats the optimum but by the luck of the queries"


def test_gains_nothing_where_answers_belong_to_other_queries(tmp_path: Path):
    """With the answers permuted over queries, embeddings tell nothing: no better than a mixture that ignores them."""
    table = synthetic_table()
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    permuted = ExpertTable.from_arrays(
        "permuted",
        table.experts,
        table.embeddings.numpy(),
        table.scores[order].numpy(),
        table.costs_usd[order].numpy(),
    )
    agent, simple, _ = learn(permuted, tmp_path, steps=150_000)
    assert agent.mean() < simple.mean() + 0.02, (agent, simple)


@pytest.mark.parametrize("algorithm", ["a2c", "maskable_ppo", "trpo", "dqn", "qrdqn"])
def test_every_algorithm_learns_something(algorithm: str, synthetic: Path, tmp_path: Path):
    """Better than chance at all six budgets together, after a short training; also: each trains, saves and loads."""
    steps = 20_000 if algorithm in ("dqn", "qrdqn") else 60_000
    config = train.Config(str(synthetic), algo=algorithm, timesteps=steps, run_dir=str(tmp_path / "run"))  # type: ignore
    assert train.run(config) == 0
    table = synthetic_table()
    rules = dynamics.make_rules(table, "test")
    budgets = dynamics.budget_grid(rules)
    agent = evaluate(Orchestrator.load(tmp_path / "run"), rules, budgets, episodes=32)
    chance = evaluate(simple_routers(table)["random"], rules, budgets, episodes=32)
    assert agent.mean_score > chance.mean_score + 0.03
