"""Any function of the observation is a router: it sees what the environment shows, and opens no closed action."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import leeroo_env  # noqa: F401 - registers the environment
from agents import Orchestrator
from agents.evaluation.evaluate import evaluate
from agents.routers import from_function
from agents.training.trainer import report_on
from leeroo_env import ExpertTable, InputError, dynamics
from tests.conftest import random_table
from tests.synthetic import doubting_table


@pytest.mark.parametrize("max_calls", [1, 3])
def test_it_observes_what_the_environment_shows(max_calls: int):
    table = doubting_table(n=120)
    env = gymnasium.make("Leeroo-v0", table=table, split="test", horizon=6, budget=0.001, max_calls=max_calls)
    network = nn.Linear(env.observation_space.shape[0], 3 + (max_calls > 1))  # type: ignore[index]
    seen: list[np.ndarray] = []

    def policy(observations: Tensor) -> Tensor:
        seen.append(observations[0].numpy())
        return network(observations)

    router = from_function(policy, table, max_calls)
    rules = dynamics.make_rules(table, "test", 6, 0.001, max_calls=max_calls)
    evaluate(router, rules, [0.001], episodes=1, seed=0)
    for observation in seen:
        assert observation.shape == env.observation_space.shape and env.observation_space.contains(observation)


def test_a_choice_and_a_preference_are_the_same_router():
    table = random_table(n=120)
    rules = dynamics.make_rules(table, "test", 10)
    budgets = dynamics.budget_grid(rules)
    one, other, third = (
        evaluate(from_function(policy, table), rules, budgets, 8)
        for policy in (
            lambda x: (torch.arange(4) == 3).float().expand(len(x), 4),
            lambda x: torch.full((len(x),), 3),
            lambda x: np.full(len(x), 3),
        )
    )
    assert np.array_equal(one.chosen, other.chosen) and np.array_equal(other.chosen, third.chosen)


@pytest.mark.parametrize(
    "policy",
    [
        lambda x: x,
        lambda x: torch.zeros(len(x)),
        lambda x: torch.full((len(x),), 4),
        lambda x: torch.zeros(len(x), 4, dtype=torch.bool),
        lambda x: torch.zeros(len(x), 1),
    ],
)
def test_what_is_neither_is_refused(policy: Callable[[Tensor], Any]):
    table = random_table(n=120)
    with pytest.raises(InputError, match=r"the policy returned .* must be actions"):
        evaluate(from_function(policy, table), dynamics.make_rules(table, "test", 5), [1e-3], 2)


def test_a_function_of_its_own_gets_a_report_and_an_orchestrator(tmp_path: Path):
    table = random_table(n=240)
    router = from_function(lambda x: x[:, :4], table)
    decision = report_on(router, table, tmp_path / "report", horizon=10)
    evaluation = json.loads((tmp_path / "report/evaluation.json").read_text())
    assert next(iter(evaluation["routers"])) == "agent" and len(evaluation["routers"]) > 20
    assert evaluation["decision"]["deploy"] == decision.deploy
    assert "the policy was given as it is" in (tmp_path / "report/report.md").read_text()
    orchestrator = Orchestrator.of(router, table)
    embeddings = table.embeddings[:5].numpy()
    chosen = orchestrator.choose(embeddings, 1.0, 5)
    assert np.array_equal(chosen, embeddings[:, :4].argmax(axis=1))
    poor = orchestrator.choose(embeddings, float(table.mean_cost_usd().min()) * 1.01, 1)
    assert (poor == 0).all(), "no other is paid for"
    with pytest.raises(InputError, match="cannot store"):
        orchestrator.save(tmp_path / "run")


def test_several_calls_work_alike(tmp_path: Path):
    """Expert 0, then expert 1, then deliver."""
    table: ExpertTable = doubting_table(n=240)

    def policy(observations: Tensor) -> Tensor:
        made = (observations[:, -3] * 3).round().long()
        return torch.tensor([0, 1, 3])[made.clamp(max=2)]

    router = from_function(policy, table, max_calls=3)
    rules = dynamics.make_rules(table, "test", 10, max_calls=3)
    result = evaluate(router, rules, [0.01], 4)
    assert result.calls[0].tolist() == [1, 1, 0]
    orchestrator = Orchestrator.of(router, table)
    assert orchestrator.max_calls == 3 and orchestrator.choose(table.embeddings[:2].numpy(), 1.0, 2).tolist() == [0, 0]
