"""Describes a stored policy: what has to be known beside its weights to route with it, the contents of policy.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic
import torch

from agents.algorithms import ALGORITHMS
from leeroo_env.cost_scale import CostScale
from leeroo_env.dynamics import Rules
from leeroo_env.files import read_model, write_json

FORMAT = 2
NO_ALGORITHM = "none"  # of a router that no reinforcement learning has trained
MAX_DIM = 2**20
MAX_FEATURE = 3e38  # of single precision


class PolicyDescription(pydantic.BaseModel, extra="forbid", frozen=True):
    """`policy.json`.

    Attributes:
        format: 2.
        algorithm: that trained the policy; a name in `ALGORITHMS`, or "none".
        policy: of which kind it is.
        policy_kwargs: arguments of its class.
        hide_budget: whether it sees nothing of the budget.
        max_calls: M, the most calls of a query.
        experts: [K], their names.
        mean_cost_usd: [K], on the training split.
        price_range_usd: the scale on which budgets are observed, lowest and highest.
        feature_low: the least feature of a query in training.
        feature_high: the greatest.
        feature_dim: features of a query.
        embedding_dim: D of the table's embeddings, of which features may be made.
        encoder: what made these, as `table.json` describes it.
        table: the name of the table.
        table_sha256: its fingerprint.
        evidence_columns: of the table, those that tell of an answer, where the policy observes this evidence.
        step: environment steps trained when it was kept, if known.
        manifest: whether the file is part of a directory that was written with a `manifest.json`.
    """

    format: int = FORMAT
    algorithm: str
    policy: Literal["mlp", "bid-price", "router"]
    policy_kwargs: dict[str, Any]
    hide_budget: bool
    max_calls: int = pydantic.Field(1, ge=1)
    experts: tuple[str, ...]
    mean_cost_usd: tuple[float, ...]
    price_range_usd: tuple[float, float]
    feature_low: float = pydantic.Field(ge=-MAX_FEATURE, le=MAX_FEATURE)
    feature_high: float = pydantic.Field(ge=-MAX_FEATURE, le=MAX_FEATURE)
    feature_dim: int = pydantic.Field(ge=1, le=MAX_DIM)
    embedding_dim: int = pydantic.Field(ge=1, le=MAX_DIM)
    encoder: dict[str, Any]
    table: str
    table_sha256: str
    evidence_columns: tuple[str, ...] | None = None
    step: int | None = None
    manifest: bool = False

    @pydantic.field_validator("format")
    @classmethod
    def _check_format(cls, value: int) -> int:
        if value != FORMAT:
            raise ValueError(f"{value} is not {FORMAT}")
        return value

    @pydantic.field_validator("algorithm")
    @classmethod
    def _check_algorithm(cls, value: str) -> str:
        if value not in (*ALGORITHMS, NO_ALGORITHM):
            raise ValueError(f"{value!r} is none of {', '.join(ALGORITHMS)}")
        return value

    @pydantic.field_validator("mean_cost_usd")
    @classmethod
    def _check_costs(cls, value: tuple[float, ...], info: pydantic.ValidationInfo) -> tuple[float, ...]:
        if len(value) != len(info.data.get("experts", value)):
            raise ValueError(f"{len(value)} costs for {len(info.data['experts'])} experts")
        return value

    def cost_scale(self, device: torch.device | str = "cpu") -> CostScale:
        return CostScale(torch.tensor(self.mean_cost_usd, device=device), *self.price_range_usd)


def describe_policy(
    rules: Rules,
    algorithm: str,
    policy_kwargs: dict[str, Any],
    policy: Literal["mlp", "bid-price", "router"] = "mlp",
    hide_budget: bool = False,
) -> PolicyDescription:
    """The description of a policy that was trained by these rules; the other arguments as its attributes."""
    table, features, scale = rules.table, rules.features, rules.cost_scale
    return PolicyDescription(
        algorithm=algorithm,
        policy=policy,
        policy_kwargs=policy_kwargs,
        hide_budget=hide_budget,
        max_calls=rules.max_calls,
        experts=tuple(table.experts),
        mean_cost_usd=tuple(scale.mean_usd.tolist()),
        price_range_usd=(scale.low_usd, scale.high_usd),
        feature_low=float(features.min()),
        feature_high=float(features.max()),
        feature_dim=features.shape[1],
        embedding_dim=table.embeddings.shape[1],
        encoder=table.info.encoder,
        table=table.name,
        table_sha256=table.fingerprint(),
    )


def read_description(path: Path) -> PolicyDescription:
    """Raises InputError, one line with file and field, where it is missing, broken, or of another format."""
    return read_model(path, PolicyDescription)


def write_description(path: Path, description: PolicyDescription) -> None:
    optional = {"step": description.step is None, "manifest": not description.manifest}
    write_json(path, description.model_dump(exclude={name for name, unset in optional.items() if unset}))
