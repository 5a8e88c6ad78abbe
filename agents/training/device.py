"""Where tensors go."""

from __future__ import annotations

import torch

from leeroo_env import InputError


def choose_device(name: str) -> torch.device:
    """auto takes the GPU if there is one. Raises InputError where cuda is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch finds no usable GPU here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
