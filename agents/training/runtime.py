"""Where and how torch computes: the device, the threads, fits that run in parallel, and the random generators."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import Any

import numpy as np
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
    the global random generators. An interruption does not wait for them.
    """
    before = torch.get_num_threads()
    futures: list[Future[Any]] = [Future() for _ in work]

    def run_one(piece: Callable[[], Any], future: Future[Any]) -> None:
        torch.set_num_threads(1)
        try:
            future.set_result(piece())
        except BaseException as error:
            future.set_exception(error)

    for piece, future in zip(work, futures, strict=True):
        Thread(target=run_one, args=(piece, future), daemon=True).start()
    results = [future.result() for future in futures]
    torch.set_num_threads(before)
    return results


@contextmanager
def generators_restored() -> Iterator[None]:
    """Puts the global random generators back to where they were, so that what the block draws changes nothing after."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - SB3 draws from it
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
