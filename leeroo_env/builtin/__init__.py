"""Tables that ship with the package and are named instead of given as a directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable

DEFAULT = "tiny"
BUILTIN = {"tiny": Path(__file__).parent / "tiny"}


def resolve(
    table: str | os.PathLike | ExpertTable, experts: Sequence[str] | None = None, device: torch.device | str = "cpu"
) -> ExpertTable:
    """The table that is meant: an `ExpertTable` itself, a built-in one by name, or a directory.

    Raises:
        InputError: no such table, or what `ExpertTable.load` finds wrong with it.
    """
    if isinstance(table, ExpertTable):
        return (table.select(experts) if experts else table).to(device)
    path = BUILTIN.get(str(table), Path(table))
    if not path.exists():
        raise InputError(f"{table}: no such table directory, and the built-in tables are {', '.join(BUILTIN)}")
    return ExpertTable.load(path, experts, device)
