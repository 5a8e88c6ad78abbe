"""PPO on the device: it learns what stable-baselines3's PPO learns, and could be captured as a CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import agents.ppo
from agents.asking_policy import AskingPolicy
from agents.bid_price import BidPricePolicy, table_of_estimates
from agents.captured import captured
from agents.checkpoint import latest_checkpoint, restore_checkpoint, save_checkpoint
from agents.plan import Plan, plan_for
from agents.ppo import DevicePPO, loss_gradients
from agents.rollout import Rollout
from leeroo_env import ExpertTable, InputError, LeerooVectorEnv, dynamics
from leeroo_env.dynamics import State
from leeroo_env.sb3 import LeerooSB3VecEnv
from tests.conftest import random_table

B, T, H = 6, 8, 8
WRONG = -1e4

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "clipped values": {"clip_range_vf": 0.05, "clip_range": 0.02, "ent_coef": 0.01},
    "target KL": {"target_kl": 2e-4, "learning_rate": 3e-3},
    "episodes in mid-course": {"n_steps": 5},
    "several episodes": {"n_steps": 21},
    "ragged minibatch": {"batch_size": 13},
    "ragged minibatch of one": {"batch_size": 47},
    "schedules": {"learning_rate": lambda left: 1e-3 * left, "clip_range": lambda left: 0.02 + 0.2 * left},
    "advantages as they are": {"normalize_advantage": False, "vf_coef": 0.3, "max_grad_norm": 0.1},
}
POLICIES: dict[str, tuple[Any, int]] = {  # and M
    "MLP": ("MlpPolicy", 1),
    "MLP, 4 calls": ("MlpPolicy", 4),
    "bid price": (BidPricePolicy, 1),
    "asking": (AskingPolicy, 4),
}


@pytest.fixture(scope="module")
def small() -> ExpertTable:
    answers = np.random.default_rng(1).choice(["a", "b", "c"], size=(90, 4)).astype(object)
    return random_table(n=90, answers=answers)


@pytest.fixture(scope="module")
def estimates(small: ExpertTable) -> Tensor:
    """[N, 2K]"""
    noise = torch.randn(small.scores.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([(small.scores + 0.3 * noise).clamp(0, 1), small.costs_usd], dim=1).float()


@pytest.fixture(scope="module")
def plan(small: ExpertTable, estimates: Tensor) -> Plan:
    rows = small.rows("train")
    return plan_for(small, rows, estimates[rows])


@pytest.fixture
def make(small: ExpertTable, estimates: Tensor, plan: Plan) -> Callable[..., PPO]:
    """Makes a model: `make(DevicePPO, "bid price", n_steps=5)`."""

    def made(model_class: type[PPO], policy: str, device: str = "cpu", **chosen: Any) -> PPO:
        kind, max_calls = POLICIES[policy]
        table, kwargs = small, {"net_arch": [8]}
        if kind != "MlpPolicy":
            low, high = dynamics.make_rules(small).price_range_usd if False else dynamics.price_range(
                small.mean_cost_usd()
            )
            table = table_of_estimates(small, estimates, high)
            kwargs = {
                "mean_cost_usd": small.mean_cost_usd().tolist(),
                "price_range_usd": [low, high],
                "horizon": H,
            } | ({"max_calls": max_calls} if max_calls > 1 else {})
        env = LeerooSB3VecEnv(LeerooVectorEnv(B, table.to(device), horizon=H, max_calls=max_calls))
        chosen = {"n_steps": T, "batch_size": 16, "n_epochs": 2, "learning_rate": 1e-3} | chosen
        model = model_class(kind, env, policy_kwargs=kwargs, seed=0, device=device, **chosen)
        if isinstance(model.policy, BidPricePolicy):
            model.policy.start_from(plan)
        return model

    return made
