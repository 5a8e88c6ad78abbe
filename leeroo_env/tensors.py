"""Makes tensors that can be used everywhere, whatever mode of torch they are made in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def normal_tensors(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a function return normal tensors within `torch.inference_mode()`, too.

    Those of that mode fail outside it wherever they are changed or a gradient needs them, and episodes that are begun
    inside may go on outside.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            values: Any = [_normal(value) for value in args]
            named: Any = {name: _normal(value) for name, value in kwargs.items()}
            return function(*values, **named)

    return wrapped


def _normal(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
