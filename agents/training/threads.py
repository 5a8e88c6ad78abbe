"""How many threads torch works with: one, or all, by trying; and pieces of work that run beside each other."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

ROUNDS = 7
WORTH = 0.75  # of the time with one thread: what many must do better than, since neighbours come and go
ROWS, WIDTH = 4_096, 32  # as the default policy learns


def choose_threads(wanted: int = 0) -> int:
    """Sets torch's threads to `wanted`, or for 0 to what was faster on small networks just now; returns the number.

    With a busy neighbour two threads can take many times as long as one: it is measured where it is run. No more than
    OMP_NUM_THREADS are tried.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = min(cores, int(os.environ.get("OMP_NUM_THREADS", cores)))
    chosen = wanted if wanted > 0 or most == 1 else _faster(most)
    torch.set_num_threads(max(1, chosen))
    return max(1, chosen)


def side_by_side(*work: Callable[[], Any]) -> list[Any]:
    """What each piece of work gives. They run at the same time, with one thread of torch each, so that their bits do
    not depend on how many threads there are; they must not draw from the global generators."""
    before = torch.get_num_threads()

    def alone(piece: Callable[[], Any]) -> Any:
        torch.set_num_threads(1)
        return piece()

    with ThreadPoolExecutor(len(work)) as pool:
        results = list(pool.map(alone, work))
    torch.set_num_threads(before)
    return results


def _faster(most: int) -> int:
    x = torch.linspace(-1, 1, ROWS * WIDTH).view(ROWS, WIDTH)  # draws nothing: the generators stay as they are
    weight = x[:WIDTH].clone()

    def work() -> None:
        hidden = torch.tanh(x @ weight)
        weight.add_(x.T @ hidden, alpha=1e-6)

    times: dict[int, list[float]] = {1: [], most: []}
    for number in times:
        _timed(work, number)
    for _ in range(ROUNDS):
        for number, taken in times.items():
            taken.append(_timed(work, number))
    one, many = (statistics.median(times[number]) for number in (1, most))
    return most if many < WORTH * one else 1


def _timed(work: Callable[[], None], threads: int) -> float:
    torch.set_num_threads(threads)
    began = time.perf_counter()
    for _ in range(5):
        work()
    return time.perf_counter() - began
