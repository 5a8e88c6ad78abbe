"""Stores routers of the registry as tensors and JSON, and loads them to be deployed.

A router is an object of a known class whose attributes are tensors, numbers, words, and such objects again. What it
observes is made anew, by the estimator that is stored with it. Nothing is unpickled: only the classes of `CLASSES` are
made. The directory holds `policy.json`, `router.json` and `router.safetensors`.

B queries, K experts.
"""

from __future__ import annotations

from dataclasses import fields as fields_of
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.estimators.base import Estimates
from agents.estimators.domain_mean import DomainMeans
from agents.estimators.ensemble import Predictor
from agents.estimators.kernel_ridge import KernelRidge
from agents.estimators.knn import Neighbours
from agents.estimators.linucb import LinUCB
from agents.estimators.mlp import Networks
from agents.estimators.models import Model, Predicts
from agents.estimators.ridge_pca import ComponentRidge
from agents.policies.answer_model import AnswerModel
from agents.policies.budget_value import BudgetValue
from agents.policies.description import PolicyDescription, read_description, write_description
from agents.routers.base import Context, LotteryRouter, Router
from agents.routers.boosted import Trees, TwoStageTrees
from agents.routers.cascade import Cascade, Majority
from agents.routers.cascade_routing import CascadeRouting
from agents.routers.planned import Planned
from agents.routers.priced import FixedPrice, PacedPrice, PriceTable
from agents.routers.sequences import Policies
from agents.routers.static import BestSingle, Cheapest, FixedMixture, Random
from agents.routers.two_step import TwoStep
from leeroo_env.cost_scale import CostScale
from leeroo_env.errors import UNFIT, InputError, first_line
from leeroo_env.files import new_directory, read_directory, read_json, read_tensors, write_json, write_tensors
from leeroo_env.manifest import check_files
from leeroo_env.variants import shared_models

FILES = ("policy.json", "router.json", "router.safetensors")
ROUTERS = (
    *(BestSingle, Cascade, CascadeRouting, Cheapest, FixedMixture, FixedPrice, Majority, PacedPrice, Planned, Random),
    *(TwoStageTrees, TwoStep),
)
PARTS = (
    *(AnswerModel, BudgetValue, ComponentRidge, CostScale, DomainMeans, Estimates, KernelRidge, LinUCB, Model),
    *(Neighbours, Networks, Policies, Predictor, PriceTable, Trees),
)
CLASSES: dict[str, type] = {one.__name__: one for one in (*ROUTERS, *PARTS)}
NOT_STORED = ("features", "rules", "generator", "forest")  # of routers: made anew, only for tuning, or begun again


class StoredRouter(Router):
    """A router as the orchestrator uses it: its features are estimated scores [B, K], then costs in units of the most
    expensive expert's mean cost, as those of the agent.

    Attributes:
        router: the router.
        description: of what it was fitted to.
    """

    def __init__(self, router: Router, description: PolicyDescription, device: torch.device | str = "cpu"):
        self.router, self.description, self.max_calls = router, description, router.max_calls
        self.cost_scale = description.cost_scale(device)

    def begin(self, budgets_usd_per_query: Tensor) -> None:
        self.router.begin(budgets_usd_per_query)

    def choose(self, context: Context) -> Tensor:
        assert isinstance(context.features, Tensor)
        if isinstance(self.router, FixedPrice):
            self.router.begin(context.usd_per_query)
        k = len(self.cost_scale.mean_usd)
        score, cost = context.features[:, :k], context.features[:, k : 2 * k]
        return self.router.choose(replace(context, features=Estimates(score, cost * self.cost_scale.high_usd)))


def save_router(directory: Path, router: Router, estimator: Predicts, description: PolicyDescription) -> None:
    """Writes a router and the estimator of what it observes, all of it or nothing.

    Raises:
        InputError: it is of a class that cannot be stored.
    """
    tensors: dict[str, Tensor] = {}
    packed = {"router": _pack(router, "router", tensors), "estimator": _pack(estimator, "estimator", tensors)}
    with new_directory(directory) as new:
        write_tensors(new / "router.safetensors", tensors)
        write_json(new / "router.json", packed)
        write_description(new / "policy.json", description.model_copy(update={"manifest": True}))


def load_router(directory: Path, device: torch.device | str = "cpu") -> tuple[StoredRouter, Predicts]:
    """The router, ready to choose, and its estimator. Raises InputError where a file is missing or broken."""

    def read() -> tuple[PolicyDescription, dict[str, Any], dict[str, Tensor]]:
        check_files(directory, FILES)
        tensors = read_tensors(directory / "router.safetensors", device)
        return read_description(directory / "policy.json"), read_json(directory / "router.json"), tensors

    description, packed, tensors = read_directory(directory, read)
    try:
        router, estimator = (_unpack(packed[name], tensors, device) for name in ("router", "estimator"))
    except UNFIT as error:
        raise InputError(f"{directory}: router and tensors do not fit: {first_line(error)}") from None
    if not isinstance(router, ROUTERS) or not isinstance(estimator, Model | Predictor):
        raise InputError(f"{directory / 'router.json'}: holds no router and its estimator")
    if isinstance(router, CascadeRouting):
        router.answer_model.models = shared_models(description.experts, device)
    return StoredRouter(router, description, device), estimator


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; its tensors go to `tensors`, by their path."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, list | tuple):
        return {"list": [_pack(part, f"{path}.{i}", tensors) for i, part in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(part, f"{path}.{i}", tensors)] for i, (key, part) in enumerate(value.items())]}
    name = type(value).__name__
    if CLASSES.get(name) is not type(value):
        raise InputError(f"{path}: {name} cannot be stored; the routers of the report can")
    parts = vars(value)
    if isinstance(value, nn.Module):
        parts = value.state_dict()
    elif is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields_of(value)}
    dropped = NOT_STORED if isinstance(value, Router) else ()
    fields = {key: _pack(part, f"{path}.{key}", tensors) for key, part in parts.items() if key not in dropped}
    return {"class": name, "fields": fields}


def _unpack(packed: Any, tensors: dict[str, Tensor], device: torch.device | str) -> Any:
    """The value that `_pack` packed. Raises KeyError and the like where it is none."""
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        return tensors[packed["tensor"]]
    if "list" in packed:
        return tuple(_unpack(part, tensors, device) for part in packed["list"])
    if "dict" in packed:
        return {key: _unpack(part, tensors, device) for key, part in packed["dict"]}
    kind = CLASSES[packed["class"]]
    fields = {key: _unpack(part, tensors, device) for key, part in packed["fields"].items()}
    if kind is AnswerModel:
        model = AnswerModel(len(fields["silence"])).to(device)
        model.load_state_dict(fields)
        return model.requires_grad_(False)
    made: Any = object.__new__(kind)
    for key, value in fields.items():
        object.__setattr__(made, key, value)
    if isinstance(made, FixedPrice):
        made.rules = None
    if isinstance(made, LotteryRouter):
        made.generator = torch.Generator(device)
        made.generator.manual_seed(made.seed)
    return made
