"""The registry of algorithms: where each one's class is, and its default hyperparameters."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Literal

from stable_baselines3.common.base_class import BaseAlgorithm

from leeroo_env import InputError

AlgorithmName = Literal["ppo", "a2c", "dqn", "maskable_ppo", "qrdqn", "trpo"]

# Episodes are short and finite, so rewards are not discounted.
_ON_POLICY: dict[str, Any] = {"gamma": 1.0, "gae_lambda": 0.95}
_PPO = {
    "gamma": 1.0,
    "gae_lambda": 0.8,
    "n_steps": 64,
    "batch_size": 1024,
    "n_epochs": 4,
    "learning_rate": 1e-3,
    "ent_coef": 0.003,
}
_OFF_POLICY: dict[str, Any] = {
    "gamma": 1.0,
    "buffer_size": 50_000,
    "learning_starts": 5_000,
    "batch_size": 256,
    "train_freq": 1,
    "learning_rate": 5e-4,
    "exploration_fraction": 0.3,
}


@dataclass(frozen=True)
class Algorithm:
    """One algorithm.

    Attributes:
        module: where its class is.
        class_name: its name there.
        n_envs: environments by default.
        settings: its other hyperparameters, arguments of the class.
        bid_price: whether it can train the bid-price policy.
        policy_kwargs: arguments of the plain network.
    """

    module: str
    class_name: str
    n_envs: int
    settings: dict[str, Any]
    bid_price: bool = False
    policy_kwargs: dict[str, Any] = field(default_factory=lambda: {"net_arch": [64, 64]})

    def load(self) -> type[BaseAlgorithm]:
        """The class. Raises InputError where its package is not installed."""
        try:
            return getattr(importlib.import_module(self.module), self.class_name)
        except ModuleNotFoundError as error:
            raise InputError(f"{self.class_name} needs {error.name}: pip install -e '.[contrib]'") from None


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm("agents.ppo.ppo", "DevicePPO", 256, _PPO, bid_price=True),
    "a2c": Algorithm(
        "stable_baselines3", "A2C", 256, {**_ON_POLICY, "n_steps": 8, "learning_rate": 1e-3}, bid_price=True
    ),
    "dqn": Algorithm("stable_baselines3", "DQN", 32, {**_OFF_POLICY, "target_update_interval": 2_000}),
    "maskable_ppo": Algorithm("sb3_contrib", "MaskablePPO", 256, _PPO),
    "qrdqn": Algorithm(
        "sb3_contrib",
        "QRDQN",
        32,
        {**_OFF_POLICY, "target_update_interval": 2_000},
        # the loss costs the square of n_quantiles: 200, the default, takes 1 s a step
        policy_kwargs={"net_arch": [64, 64], "n_quantiles": 25},
    ),
    "trpo": Algorithm("sb3_contrib", "TRPO", 256, {**_ON_POLICY, "n_steps": 64, "batch_size": 1024}),
}
