"""Defines the format of a table directory: columns, splits, and the content of `table.json`."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pydantic

SPLITS = ("train", "val", "test")
QUERY_COLUMNS = {"query_id": pa.string(), "text": pa.string(), "domain": pa.string()}
NULLABLE_QUERY_COLUMNS = {"reference": pa.string(), "split": pa.string()}
EVIDENCE = "evidence_"  # how the names of columns begin that hold what a call told about its answer
MAX_COST_USD = 1e9  # of one call; sums over an episode stay far from the ends of single precision
NOT_A_COST = f"is not a cost in dollars >= 0 (and at most {MAX_COST_USD:g})"
ANSWER_COLUMNS = {
    "query_id": pa.string(),
    "expert": pa.string(),
    "score": pa.float64(),
    "cost_usd": pa.float64(),
    "prompt_tokens": pa.int64(),
    "completion_tokens": pa.int64(),
}


class ExpertInfo(pydantic.BaseModel, extra="allow", frozen=True):
    """The description of one expert in `table.json`. Unknown fields are kept."""

    name: str = pydantic.Field(min_length=1)
    usd_per_mtok_in: float | None = pydantic.Field(None, ge=0)
    usd_per_mtok_out: float | None = pydantic.Field(None, ge=0)
    parameters_b: float | None = None


class TableInfo(pydantic.BaseModel, extra="allow", frozen=True):
    """The content of `table.json`. Unknown fields are kept.

    Attributes:
        manifest: whether the directory was written with a `manifest.json`, so that it is missed where it is not there;
            said of files alone.
    """

    manifest: bool = pydantic.Field(False, exclude=True)
    format: int = pydantic.Field(1, ge=1, le=1)
    name: str
    description: str = ""
    encoder: dict[str, Any] = {}
    experts: tuple[ExpertInfo, ...] = pydantic.Field(min_length=1)


def hash_split(query_id: str) -> str:
    """The split of a query whose table gives none; by its id alone, so that adding queries never changes it."""
    h = tenth(query_id)
    return "test" if h <= 2 else "val" if h == 3 else "train"


def tenth(query_id: str) -> int:
    """Which of ten equal parts a query belongs to, 0 to 9, by its id alone."""
    return int(hashlib.sha256(query_id.encode()).hexdigest(), 16) % 10
