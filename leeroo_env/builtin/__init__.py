"""Tables that can be named instead of given as a directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from leeroo_env.builtin.synthetic import synthetic_table
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable

BUILTIN = {"synthetic": synthetic_table}


def resolve(
    table: str | os.PathLike | ExpertTable, experts: Sequence[str] | None = None, device: torch.device | str = "cpu"
) -> ExpertTable:
    """The table that is meant: an `ExpertTable` itself, a built-in one by name, or a directory.

    Raises:
        InputError: no such table, or what `ExpertTable.load` finds wrong with it.
    """
    if isinstance(table, ExpertTable):
        loaded = table
    elif str(table) in BUILTIN:
        loaded = BUILTIN[str(table)]()
    elif not Path(table).exists():
        raise InputError(f"{table}: no such table directory, and the built-in tables are {', '.join(BUILTIN)}")
    else:
        return ExpertTable.load(table, experts, device)
    return (loaded.select(experts) if experts else loaded).to(device)
