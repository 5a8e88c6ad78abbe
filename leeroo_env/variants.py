"""Tells from the names of experts which are one model with several settings: "name@variant" is a variant of "name"."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def entry_of(name: str, names: Collection[str]) -> str:
    """The entry whose model an expert is, among the names of a pool's experts: of "name@variant" it is "name"."""
    entry, _, _ = name.rpartition("@")
    return entry if entry in names else name


def shared_models(names: Sequence[str], device: torch.device | str = "cpu") -> Tensor | None:
    """For each of K experts the place of its `entry_of`, [K] int64: equal where the model is; None where all differ."""
    import torch

    places = {name: place for place, name in enumerate(names)}
    models = [places[entry_of(name, places)] for name in names]
    return None if len(set(models)) == len(models) else torch.tensor(models, device=device)
