"""Policies on disk: what an algorithm has learnt, apart from the algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from agents.algorithms import ALGORITHMS
from agents.policies.bid_price import BidPricePolicy
from agents.policies.multi_call import MultiCallPolicy
from leeroo_env import InputError
from leeroo_env.dynamics import Rules
from leeroo_env.env import observation_space
from leeroo_env.files import read_json, read_tensors, write_json, write_tensors

FORMAT = 2
RENAMED_PREFIXES = {  # of stored tensors, old to current: files written before the names changed still load
    "mlp_extractor.asking.agreement.": "mlp_extractor.call_value.answer_model.",
    "mlp_extractor.asking.beyond.": "mlp_extractor.call_value.continuation_net.",
    "mlp_extractor.asking.foresight": "mlp_extractor.call_value.continuation_weight",
    "mlp_extractor.patience.": "mlp_extractor.stop_logit.",
}


class HiddenBudget(BaseFeaturesExtractor):
    """Shows a policy always the same middling budget and queries left: the ablation of `--hide-budget`."""

    def __init__(self, space: gymnasium.spaces.Box):
        super().__init__(space, space.shape[0])

    def forward(self, observations: Tensor) -> Tensor:
        return torch.cat([observations[:, :-2], torch.full_like(observations[:, -2:], 0.5)], dim=1)


def describe_policy(
    rules: Rules,
    algorithm: str,
    policy_kwargs: dict[str, Any],
    policy: str = "mlp",
    hide_budget: bool = False,
) -> dict[str, Any]:
    """What has to be known beside the weights to route with a policy; `policy.json`.

    Args:
        rules: those that the policy plays by.
        algorithm: its name in `ALGORITHMS`.
        policy_kwargs: arguments of the policy class.
        policy: "mlp" or "bid-price".
        hide_budget: whether the policy sees nothing of the budget.
    """
    table, features, scale = rules.table, rules.features, rules.cost_scale
    return {
        "format": FORMAT,
        "algorithm": algorithm,
        "policy": policy,
        "policy_kwargs": policy_kwargs,
        "hide_budget": hide_budget,
        "max_calls": rules.max_calls,
        "experts": list(table.experts),
        "mean_cost_usd": scale.mean_usd.tolist(),
        "price_range_usd": [scale.low_usd, scale.high_usd],
        "feature_low": float(features.min()),
        "feature_high": float(features.max()),
        "feature_dim": features.shape[1],
        "embedding_dim": table.embeddings.shape[1],
        "encoder": table.info.encoder,
        "table": table.name,
        "table_sha256": table.fingerprint(),
    }


def save_policy(directory: Path, policy: BasePolicy, description: dict[str, Any]) -> None:
    """Writes `policy.safetensors` and `policy.json`. The weights go first: the description never lacks them."""
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / "policy.safetensors", policy.state_dict())
    write_json(directory / "policy.json", description)


def load_policy(directory: Path, device: torch.device | str = "cpu") -> tuple[BasePolicy, dict[str, Any]]:
    """The policy, ready to choose, and its description.

    Raises:
        InputError: a file is missing, broken, or of another format.
    """
    path = directory / "policy.json"
    description = {"max_calls": 1, **read_json(path)}
    if description.get("format") != FORMAT:
        raise InputError(f"{path}: format: {description.get('format')!r} is not {FORMAT}")
    if description.get("algorithm") not in ALGORITHMS:
        raise InputError(f"{path}: algorithm: {description.get('algorithm')!r} is none of {', '.join(ALGORITHMS)}")
    try:
        if len(description["experts"]) != len(description["mean_cost_usd"]):
            raise TypeError(f"{len(description['experts'])} experts, {len(description['mean_cost_usd'])} mean costs")
        with torch.random.fork_rng(devices=[]):  # a run may load while it trains
            policy = empty_policy(description)
        policy.load_state_dict(with_current_names(read_tensors(directory / "policy.safetensors")))
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]}: missing") from None
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{directory}: weights and description do not fit: {str(error).splitlines()[0]}") from None
    policy.set_training_mode(False)
    return policy.to(device), description


def with_current_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A stored policy's tensors under the names that its class gives them today."""
    renamed = {}
    for name, value in tensors.items():
        old = next((prefix for prefix in RENAMED_PREFIXES if name.startswith(prefix)), "")
        renamed[RENAMED_PREFIXES.get(old, "") + name.removeprefix(old)] = value
    return renamed


def empty_policy(description: dict[str, Any]) -> BasePolicy:
    """An untrained policy of the kind and size that is described. Raises KeyError, TypeError."""
    k, several = len(description["experts"]), description["max_calls"] > 1
    observations = observation_space(
        description["feature_dim"], description["feature_low"], description["feature_high"], k if several else 0
    )
    actions = gymnasium.spaces.Discrete(k + several)
    policy_class: Any = MultiCallPolicy if several else BidPricePolicy
    if description["policy"] == "mlp":
        policy_class = ALGORITHMS[description["algorithm"]].load().policy_aliases["MlpPolicy"]
    hidden = {"features_extractor_class": HiddenBudget} if description["hide_budget"] else {}
    return policy_class(observations, actions, lambda _: 0.0, **hidden, **description["policy_kwargs"])
