"""Makes the algorithm that learns, on its environment, with the policy that it trains."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from agents.algorithms import ALGORITHMS
from agents.distributed import ALONE, Processes
from agents.policies.bid_price import BidPricePolicy
from agents.policies.io import HiddenBudget
from agents.policies.multi_call import MultiCallPolicy
from agents.training.config import PolicyKind, TrainConfig
from leeroo_env import LeerooVectorEnv
from leeroo_env.dynamics import Rules
from leeroo_env.sb3 import LeerooSB3VecEnv


def make_model(
    config: TrainConfig, policy: PolicyKind, rules: Rules, processes: Processes = ALONE
) -> tuple[BaseAlgorithm, dict[str, Any]]:
    """The algorithm on an environment that plays by `rules`, and the hyperparameters that it was made with. Of several
    `processes` each plays, and learns from, its part of the episodes."""
    algorithm = ALGORITHMS[config.algo]
    model_class: Any = algorithm.load()
    settings, n_envs = dict(algorithm.settings), algorithm.n_envs
    if policy == "bid-price" and config.algo == "ppo":
        n_envs = 1024
        settings |= {"ent_coef": 0.0, "learning_rate": 1e-3, "n_epochs": 2, "batch_size": 4096}
        if rules.max_calls > 1:
            n_steps = 16_384 // (config.n_envs or n_envs)  # updates as often, whatever the number of episodes
            several = {"learning_rate": 3e-4, "n_epochs": 1, "batch_size": 1024}
            settings |= {**several, "n_steps": min(max(n_steps, 16), settings["n_steps"])}
        settings["batch_size"] *= max(config.n_envs // n_envs, 1)  # more episodes do not make more minibatches
    settings |= {name: type(settings[name])(value) for name, value in config.tuned.items()}
    n_envs = -(-(config.n_envs or n_envs) // processes.world)
    vector_env = LeerooVectorEnv(n_envs, rules=rules)
    if "n_steps" in settings and "batch_size" in settings:
        settings["batch_size"] = min(-(-settings["batch_size"] // processes.world), n_envs * settings["n_steps"])
    network: Any = dict(algorithm.policy_kwargs)
    if policy == "bid-price":
        scale = rules.cost_scale
        network = {
            "mean_cost_usd": scale.mean_usd.tolist(),
            "price_range_usd": [scale.low_usd, scale.high_usd],
            "horizon": config.horizon,
        }
        if rules.max_calls > 1:
            network["max_calls"] = rules.max_calls
    hidden = {"features_extractor_class": HiddenBudget} if config.hide_budget else {}
    kind = "MlpPolicy" if policy == "mlp" else MultiCallPolicy if rules.max_calls > 1 else BidPricePolicy
    model = model_class(
        kind,
        LeerooSB3VecEnv(vector_env),
        policy_kwargs={**network, **hidden},
        seed=(config.seed + processes.rank * n_envs) % 2**32,
        device=rules.table.device,
        **settings,
    )
    made_with = {**settings, "n_envs": model.n_envs, "policy_kwargs": network}
    if processes.world > 1:
        model.processes = processes
        together = {name: made_with[name] * processes.world for name in ("batch_size", "n_envs")}
        made_with |= {**together, "processes": processes.world}
    return model, made_with
