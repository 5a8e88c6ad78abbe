"""Policies and checkpoints that were stored under the names of earlier versions load to the same tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from agents.policies.description import describe_policy
from agents.policies.io import RENAMED_PREFIXES, load_policy, save_policy
from agents.training.checkpoint import latest_checkpoint, restore_checkpoint, save_checkpoint
from agents.training.config import TrainConfig
from agents.training.factory import make_model
from leeroo_env import dynamics
from leeroo_env.files import read_tensors, write_tensors
from leeroo_env.manifest import write_manifest
from tests.conftest import random_table

H = 8


def make(seed: int) -> tuple[BaseAlgorithm, dynamics.Rules, dict]:
    """A policy for three calls a query with random parameters."""
    answers = np.random.default_rng(0).choice(["a", "b", "c"], size=(60, 4)).astype(object)
    table = random_table(answers=answers)
    config = TrainConfig(max_calls=3, horizon=H, n_envs=4, seed=seed)
    rules = dynamics.make_rules(table, horizon=H, max_calls=3, features=torch.rand(60, 8))
    model, settings = make_model(config, "bid-price", rules)
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.policy.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return model, rules, settings


def with_earlier_names(tensors: dict[str, Tensor], before: str = "") -> dict[str, Tensor]:
    named = dict(tensors)
    for old, new in RENAMED_PREFIXES.items():
        for name in [name for name in named if name.startswith(before + new)]:
            named[before + old + name.removeprefix(before + new)] = named.pop(name)
    assert sum(".asking." in name or ".patience." in name for name in named) == 15
    return named


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


def test_a_policy_with_earlier_names_loads(tmp_path: Path):
    model, rules, settings = make(seed=0)
    save_policy(tmp_path, model.policy, describe_policy(rules, "ppo", settings["policy_kwargs"], "bid-price"))
    path = tmp_path / "policy.safetensors"
    write_tensors(path, with_earlier_names(read_tensors(path)))
    write_manifest(path.parent)
    policy, _ = load_policy(tmp_path)
    assert_same(policy.state_dict(), model.policy.state_dict())
    observations = dynamics.observe(rules, dynamics.sample_episodes(rules, torch.arange(20))).numpy()
    first, second = (p.predict(observations, deterministic=True)[0] for p in (policy, model.policy))
    assert np.array_equal(first, second)


def test_a_checkpoint_with_earlier_names_is_restored(tmp_path: Path):
    model, _, _ = make(seed=0)
    save_checkpoint(tmp_path, model.learn(1), {})
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    path = checkpoint / "state.safetensors"
    write_tensors(path, with_earlier_names(read_tensors(path), "policy."))
    write_manifest(path.parent)
    resumed, _, _ = make(seed=1)
    restore_checkpoint(checkpoint, resumed)
    assert_same(resumed.policy.state_dict(), model.policy.state_dict())
