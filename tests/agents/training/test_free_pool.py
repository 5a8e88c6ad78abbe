"""A pool of free experts: no step of training, evaluation or self-play divides by a cost of zero."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import train
from agents import Orchestrator
from agents.selfplay.learn import learn
from leeroo_env import ExpertTable, dynamics

K = 3


@pytest.fixture(scope="module")
def free() -> ExpertTable:
    """Free experts that are right more and more often; only right answers agree."""
    rng = np.random.default_rng(0)
    scores = (rng.random((200, K)) < np.linspace(0.3, 0.9, K)).astype(float)
    answers = np.where(scores > 0, "right", rng.permuted(np.full((200, K), ["a", "b", "c"], dtype=object), axis=1))
    embeddings = rng.normal(size=(200, 6)).astype(np.float32)
    costs_usd = np.zeros((200, K))
    return ExpertTable.from_arrays("free", list("abc"), embeddings, scores, costs_usd, answers=answers)


def test_the_cost_scale_of_free_experts_has_two_equal_ends(free: ExpertTable):
    scale = free.cost_scale()
    assert (scale.low_usd, scale.high_usd) == (1.0, 1.0) and scale.log_range > 0
    rules = dynamics.make_rules(free, horizon=4)
    assert rules.budget_usd_per_query == (1.0, 1.0) and all(usd > 0 for usd in dynamics.budget_grid(rules))


@pytest.mark.parametrize("max_calls", [1, 3])
def test_train_on_free_experts(free: ExpertTable, tmp_path: Path, max_calls: int):
    free.save(tmp_path / "table")
    run = tmp_path / "run"
    options = {"table": tmp_path / "table", "run-dir": run, "max-calls": max_calls, "timesteps": 2000, "horizon": 8}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    assert train.main([*arguments, "--n-envs", "16"]) == 0
    routers: dict[str, Any] = json.loads((run / "evaluation.json").read_text())["routers"]
    for name, result in routers.items():
        assert np.isfinite(result["score"]).all() and not np.any(result["cost_usd"]), name
    assert np.mean(routers["agent"]["score"]) > np.mean(routers["random"]["score"]) + 0.1
    agent = Orchestrator.load(run)
    for usd in (0.0, 1e-6, 1.0):
        chosen = agent.choose(free.embeddings[:5].numpy(), usd, 8)
        assert ((chosen >= 0) & (chosen < K)).all()
    assert all(torch.isfinite(parameter).all() for parameter in agent.policy.parameters())


def test_selfplay_learns_from_free_experts(free: ExpertTable, tmp_path: Path):
    config = SimpleNamespace(horizon=8, seed=0, timesteps=0)
    selfplay: Any = SimpleNamespace(config=config, directory=lambda number: tmp_path / f"round-{number}")
    learned = learn(selfplay, 0, free)
    assert np.isfinite(learned.val.score).all() and not np.any(learned.val.cost_usd)
