"""Keeps what users thought of stored answers, which is their score in the place of a grader's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic

from leeroo_env.files import read_model, write_json

FILE = "feedback.json"


class Feedback(pydantic.RootModel[dict[str, Annotated[float, pydantic.Field(ge=0, le=1)]]], frozen=True):
    """By the key of an answer its mean score, from 0 for useless to 1 for right."""


def read_feedback(parts: Path) -> dict[str, float]:
    """The scores of the answers in a store's directory. Raises InputError where the file is broken."""
    path = parts / FILE
    return read_model(path, Feedback).root if path.exists() else {}


def add_feedback(parts: Path, scores: dict[str, float]) -> None:
    """Adds scores, which take the place of earlier ones of the same answers."""
    if scores:
        write_json(parts / FILE, read_feedback(parts) | scores)
