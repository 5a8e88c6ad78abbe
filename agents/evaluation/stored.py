"""Reads `evaluation.json` of a finished run, and what is deployed query by query."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydantic
import torch

from agents.evaluation.evaluate import Result
from leeroo_env.errors import InputError
from leeroo_env.files import read_model, read_tensors, write_tensors
from leeroo_env.manifest import check_files

EVALUATION, BY_QUERY = "evaluation.json", "by-query.safetensors"


class Curve(pydantic.BaseModel, frozen=True):
    """Of a router, each [G]; its calls [G, K]."""

    score: list[float]
    cost_usd: list[float]
    stderr: list[float] = []
    calls: list[list[float]] = []


class Mean(pydantic.BaseModel, frozen=True):
    """`agents.evaluation.decision.Interval`, whose ends are None where there are too few queries for one."""

    mean: float
    low: float | None = None
    high: float | None = None


class Row(pydantic.BaseModel, frozen=True):
    """What is read of a row of a decision."""

    name: str
    score: Mean
    usd_per_1000_queries: float = float("nan")
    lead: Mean | None
    saved: Mean | None


class Calls(pydantic.BaseModel, frozen=True):
    """What is read of why several calls a query were kept or one."""

    several: bool


class Trained(pydantic.BaseModel, frozen=True):
    """What is read of what training did."""

    gain: Mean | None
    algorithm: str | None = None
    calls: Calls | None = None  # runs of earlier versions have none


class Decided(pydantic.BaseModel, frozen=True):
    """What is read of `agents.evaluation.headline.Decision`."""

    deploy: str
    budget_usd_per_1000_queries: float
    score_on_val: float
    rows: list[Row]
    training: Trained


class Grid(pydantic.BaseModel, frozen=True):
    """Routers at some budgets."""

    budgets_usd: list[float]
    routers: dict[str, Curve]


class Evaluation(Grid, frozen=True):
    """What is read of `evaluation.json`."""

    seed: int
    table: str
    split: str
    horizon: int
    experts: list[str] = []
    all_budgets: Grid | None = None
    decision: Decided | None = None  # runs of earlier versions have none


def read_evaluation(run_dir: Path) -> Evaluation:
    """Raises InputError where `evaluation.json` is missing, broken, or not what was written."""
    check_files(run_dir, [EVALUATION], others=False)
    return read_model(run_dir / EVALUATION, Evaluation)


@dataclass(frozen=True)
class ByQuery:
    """What is deployed, on each of the m different queries that the episodes ask.

    Attributes:
        rows: [m] of the table, rising.
        count: [m], how often each is asked.
        score: [m], mean over these times.
        paid_usd: [m], mean over these times.
    """

    rows: np.ndarray
    count: np.ndarray
    score: np.ndarray
    paid_usd: np.ndarray

    @classmethod
    def of(cls, result: Result, place: int) -> ByQuery:
        """A result at one of its budgets."""
        rows, query, count = np.unique(result.rows[place], return_inverse=True, return_counts=True)
        score, paid_usd = (
            np.bincount(query.ravel(), weights=values[place]) / count for values in (result.scored, result.paid_usd)
        )
        return cls(rows, count, score, paid_usd)

    def is_paired_with(self, other: ByQuery) -> bool:
        """Whether the queries are the same, each as often."""
        return np.array_equal(self.rows, other.rows) and np.array_equal(self.count, other.count)

    def each(self, values: np.ndarray) -> np.ndarray:
        """`values` [m] of the queries, as often as these are asked."""
        return np.repeat(values, self.count)


def write_by_query(run_dir: Path, deployed: ByQuery) -> None:
    write_tensors(run_dir / BY_QUERY, {name: torch.from_numpy(x.copy()) for name, x in vars(deployed).items()})


def read_by_query(run_dir: Path) -> ByQuery | None:
    """None where the run is of an earlier version. Raises InputError where the file is broken."""
    if not (run_dir / BY_QUERY).exists():
        return None
    check_files(run_dir, [BY_QUERY], others=False)
    tensors = read_tensors(run_dir / BY_QUERY)
    names = list(ByQuery.__dataclass_fields__)
    if sorted(tensors) != sorted(names) or len({tensor.shape for tensor in tensors.values()}) != 1:
        raise InputError(f"{run_dir / BY_QUERY}: not the scores of a run by query")
    return ByQuery(**{name: tensors[name].numpy() for name in names})
