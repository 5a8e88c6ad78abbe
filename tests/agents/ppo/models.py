"""Small models, runs of a few iterations and comparisons for the tests of PPO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.policies.bid_price import BidPricePolicy
from agents.policies.multi_call import MultiCallPolicy
from agents.ppo.ppo import DevicePPO

B, H = 6, 8
POLICIES: dict[str, tuple[Any, int]] = {  # class and M
    "MLP": ("MlpPolicy", 1),
    "MLP, 4 calls": ("MlpPolicy", 4),
    "bid price": (BidPricePolicy, 1),
    "multi call": (MultiCallPolicy, 4),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "clipped values": {"clip_range_vf": 0.05, "clip_range": 0.02, "ent_coef": 0.01},
    "target KL": {"target_kl": 2e-4, "learning_rate": 3e-3},
    "episodes in mid-course": {"n_steps": 5},
    "several episodes": {"n_steps": 21},
    "ragged minibatch": {"batch_size": 13},
    "minibatch of one": {"batch_size": 47},
    "schedules": {"learning_rate": lambda left: 3e-3 * left, "clip_range": lambda left: 0.01 + 0.2 * left},
    "advantages as they are": {"normalize_advantage": False, "vf_coef": 0.3, "max_grad_norm": 0.1},
}
Make = Callable[..., Any]


class Recorder(BaseCallback):
    """Trains only the value in the first iteration, as `Monitor` does; keeps the statistics of episodes."""

    def __init__(self, stop_at: int = 10**9):
        super().__init__()
        self.stop_at = stop_at
        self.episodes: list[dict[str, Any]] = []

    def _on_rollout_start(self) -> None:
        if isinstance(self.model.policy, BidPricePolicy):
            self.model.policy.train_actor(self.num_timesteps > 0)

    def _on_step(self) -> bool:
        self.episodes += [info["episode"] for info in self.locals["infos"] if info]
        return self.num_timesteps < self.stop_at


def learn(model: PPO, iterations: int = 3, stop_at: int = 10**9, **kwargs: Any) -> Recorder:
    recorder = Recorder(stop_at)
    model.learn(iterations * model.n_steps * B, callback=recorder, **kwargs)
    return recorder


def learned(model: PPO) -> dict[str, Tensor]:
    """Parameters, and Adam's moments and steps."""
    state = model.policy.optimizer.state_dict()["state"]
    moments = {f"{i}.{name}": torch.as_tensor(v).cpu() for i, own in state.items() for name, v in own.items()}
    return {name: value.detach().cpu().clone() for name, value in model.policy.state_dict().items()} | moments


def within_rounding(one: PPO, other: PPO, rtol: float = 0, atol: float = 1e-6) -> None:
    first, second = learned(one), learned(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=rtol, atol=atol, msg=name)


def same_bits(one: PPO, other: PPO) -> None:
    first, second = learned(one), learned(other)
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def same_env(one: PPO, other: PPO) -> None:
    """Within the last digit of budgets: powers of several numbers at once are rounded otherwise than one by one."""
    envs: list[Any] = [one.env, other.env]
    first, second = (env.env.state_dict() for env in envs)
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-12, atol=1e-18, msg=name)


def same_episodes(one: Any, other: Any) -> None:
    """Of all episodes that ended, in their order; but for the seconds that they took."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for name in first.keys() - {"t"}:
            np.testing.assert_allclose(second[name], first[name], rtol=1e-12, atol=1e-18, err_msg=name)


def with_rate_on_the_device(model: DevicePPO) -> DevicePPO:
    """As on a GPU."""
    group = model.policy.optimizer.param_groups[0]
    group |= {"capturable": True, "lr": torch.tensor(float(group["lr"]))}
    return model
