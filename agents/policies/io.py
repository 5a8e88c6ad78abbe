"""Stores trained policies and loads them, independently of the algorithm that trained them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from agents.algorithms import ALGORITHMS
from agents.estimators.ensemble import Predictor
from agents.estimators.evidence import EvidenceModel
from agents.policies.bid_price import BidPricePolicy
from agents.policies.description import PolicyDescription, read_description, write_description
from agents.policies.multi_call import MultiCallPolicy
from leeroo_env import InputError
from leeroo_env.env import observation_space
from leeroo_env.errors import UNFIT, first_line
from leeroo_env.files import new_directory, read_directory, read_tensors, write_tensors
from leeroo_env.manifest import check_files, missing_manifest
from leeroo_env.variants import shared_models

PREDICTOR, EVIDENCE = "predictor.safetensors", "evidence.safetensors"
RENAMED_PREFIXES = {  # of stored tensors, old to current: files written before the names changed still load
    "mlp_extractor.asking.agreement.": "mlp_extractor.call_value.answer_model.",
    "mlp_extractor.asking.beyond.": "mlp_extractor.call_value.continuation_net.",
    "mlp_extractor.asking.foresight": "mlp_extractor.call_value.continuation_weight",
    "mlp_extractor.patience.": "mlp_extractor.stop_logit.",
}
LATER_WEIGHT = "mlp_extractor.call_value.later_weight"  # 1 in files written before it was there


class NoOptimizer:
    """Takes the place of the optimizer of a policy that only chooses: making torch's first one takes it a second."""

    def __init__(self, *_: Any, **__: Any):
        pass


class HiddenBudget(BaseFeaturesExtractor):
    """Replaces the budget features by a constant: the ablation of `--hide-budget`."""

    def __init__(self, space: gymnasium.spaces.Box):
        super().__init__(space, space.shape[0])

    def forward(self, observations: Tensor) -> Tensor:
        return torch.cat([observations[:, :-2], torch.full_like(observations[:, -2:], 0.5)], dim=1)


def save_policy(
    directory: Path,
    policy: BasePolicy,
    description: PolicyDescription,
    predictor: Predictor | None = None,
    evidence: EvidenceModel | None = None,
) -> None:
    """Writes `policy.safetensors`, `policy.json` and, where they are given, the predictor and the model of the
    evidence; all of them or nothing."""
    with new_directory(directory, keep=True) as new:
        write_tensors(new / "policy.safetensors", policy.state_dict())
        write_description(new / "policy.json", description.model_copy(update={"manifest": True}))
        _write_models(new, predictor, evidence)


def save_predictor(directory: Path, predictor: Predictor, evidence: EvidenceModel | None = None) -> None:
    """Writes `predictor.safetensors`, and the model of the evidence where there is one, into the directory of a policy
    that is there, or will be."""
    with new_directory(directory, keep=True) as new:
        _write_models(new, predictor, evidence)


def _write_models(directory: Path, predictor: Predictor | None, evidence: EvidenceModel | None) -> None:
    if predictor is not None:
        write_tensors(directory / PREDICTOR, predictor.tensors())
    if evidence is not None:
        write_tensors(directory / EVIDENCE, evidence.state_dict())


def load_evidence(
    directory: Path, description: PolicyDescription, device: torch.device | str = "cpu"
) -> EvidenceModel | None:
    """The model of the evidence in the directory of a policy; None where the policy observes none. Raises InputError
    where it is missing or broken."""
    if description.evidence_columns is None:
        return None

    def read() -> dict[str, Tensor]:
        check_files(directory, [EVIDENCE])
        return read_tensors(directory / EVIDENCE, device)

    tensors = read_directory(directory, read)
    with torch.random.fork_rng(devices=[]):
        model = EvidenceModel(description.evidence_columns, len(description.experts)).to(device).requires_grad_(False)
    try:
        model.load_state_dict(tensors)
    except UNFIT as error:
        raise InputError(f"{directory / EVIDENCE}: does not fit policy.json: {first_line(error)}") from None
    return model


def load_predictor(directory: Path, device: torch.device | str = "cpu") -> Predictor:
    """The predictor in the directory of a policy. Raises InputError where it is missing or broken."""
    path = directory / PREDICTOR

    def read() -> dict[str, Tensor]:
        check_files(directory, [PREDICTOR])
        return read_tensors(path, device)

    try:
        return Predictor.from_tensors(read_directory(directory, read))
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]}: missing") from None


def load_policy(directory: Path, device: torch.device | str = "cpu") -> tuple[BasePolicy, PolicyDescription]:
    """The policy, ready to choose, and its description.

    Raises:
        InputError: a file is missing, broken, not what was written, or of another format.
    """

    def read() -> tuple[bool, PolicyDescription, dict[str, Tensor]]:
        known = check_files(directory, ["policy.json", "policy.safetensors"])
        return known, read_description(directory / "policy.json"), read_tensors(directory / "policy.safetensors")

    known, description, tensors = read_directory(directory, read)
    try:
        with torch.random.fork_rng(devices=[]):  # a run may load while it trains
            policy = empty_policy(description)
        policy.load_state_dict(with_current_names(tensors))
    except UNFIT as error:
        file = directory / "policy.json"
        raise InputError(f"{file}: weights and description do not fit: {first_line(error)}") from None
    if description.manifest and not known:
        raise missing_manifest(directory)
    policy.set_training_mode(False)
    return policy.to(device), description.model_copy(update={"manifest": False})


def with_current_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A stored policy's tensors under the names that its class gives them today."""
    renamed = {}
    for name, value in tensors.items():
        old = next((prefix for prefix in RENAMED_PREFIXES if name.startswith(prefix)), "")
        renamed[RENAMED_PREFIXES.get(old, "") + name.removeprefix(old)] = value
    if any(name.startswith("mlp_extractor.call_value.") for name in renamed):
        renamed.setdefault(LATER_WEIGHT, torch.ones(()))
    return renamed


def empty_policy(description: PolicyDescription) -> BasePolicy:
    """An untrained policy of the kind and size described, which chooses but cannot be trained. Raises TypeError where
    its class takes other arguments."""
    k, several = len(description.experts), description.max_calls > 1
    observations = observation_space(
        description.feature_dim, description.feature_low, description.feature_high, k if several else 0
    )
    actions = gymnasium.spaces.Discrete(k + several)
    policy_class: Any = MultiCallPolicy if several else BidPricePolicy
    if description.policy == "mlp":
        policy_class = ALGORITHMS[description.algorithm].load().policy_aliases["MlpPolicy"]
    given: dict[str, Any] = {"optimizer_class": NoOptimizer, **description.policy_kwargs}
    if description.hide_budget:
        given["features_extractor_class"] = HiddenBudget
    policy: BasePolicy = policy_class(observations, actions, lambda _: 0.0, **given)
    if isinstance(policy, MultiCallPolicy):
        policy.set_models(shared_models(description.experts))
    return policy
