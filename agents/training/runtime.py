"""Where and how torch computes: the device, the number of threads, and fits that run in parallel."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from leeroo_env import InputError


def choose_device(name: str) -> torch.device:
    """The device called `name`; auto is the GPU if there is one. Raises InputError for cuda where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch finds no usable GPU here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def run_in_parallel(*work: Callable[[], Any]) -> list[Any]:
    """The results of all pieces of work, each run in a Python thread with one thread of torch.

    With one thread of torch each, their bits do not depend on the number of threads outside. They must not draw from
    the global random generators.
    """
    before = torch.get_num_threads()

    def run_one(piece: Callable[[], Any]) -> Any:
        torch.set_num_threads(1)
        return piece()

    with ThreadPoolExecutor(len(work)) as pool:
        results = list(pool.map(run_one, work))
    torch.set_num_threads(before)
    return results
