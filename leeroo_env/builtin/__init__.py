"""Finds tables by name or directory; the built-in ones ship with the package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from leeroo_env.atomic import recover
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable

DEFAULT = "tiny"
BUILTIN = {"tiny": Path(__file__).parent / "tiny"}


def resolve(
    table: str | os.PathLike | ExpertTable,
    experts: str | Sequence[str] | None = None,
    device: torch.device | str | None = None,
    verify: bool = False,
) -> ExpertTable:
    """The table given as an `ExpertTable`, by the name of a built-in one, or as a directory.

    Args:
        table: which.
        experts: names to keep, in this order, in a sequence or separated by commas; all where None.
        device: None leaves an `ExpertTable` where it is and loads others to the CPU.
        verify: as in `ExpertTable.load`.

    Raises:
        InputError: no such table, or what `ExpertTable.load` finds wrong with it.
    """
    if isinstance(experts, str):
        experts = [name.strip() for name in experts.split(",")]
    if isinstance(table, ExpertTable):
        selected = table.select(experts) if experts is not None else table
        return selected if device is None else selected.to(device)
    path = BUILTIN.get(str(table), Path(table))
    recover(path)
    if not path.exists():
        raise InputError(f"{table}: no such table directory, and the built-in tables are {', '.join(BUILTIN)}")
    return ExpertTable.load(path, experts, device or "cpu", verify)
