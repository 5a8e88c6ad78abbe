"""What `speed.py` measures with: alternated tries, clocks, what the machine allows, and rows of a page of results."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sections import add_section, read_section

from agents.training.runtime import processors

EARLIER = " (an earlier run)"
CORES = processors()
HEAD = "| what | median (range) | mark | | beside what, and what the machine allows |\n" + "|---" * 5 + "|"
TITLE = "# Speed\n\nWritten by `python benchmarks/speed.py`."


@dataclass(frozen=True)
class Row:
    """One claim.

    Attributes:
        what: is measured.
        values: one a pair, or none where it could not be measured.
        unit: of the values.
        mark: what their median should be at least, or `at_most`; None: nothing is asked.
        note: beside what, how much the machine allows, or why there is no value.
    """

    what: str
    values: Sequence[float] | np.ndarray
    unit: str
    mark: float | None = None
    note: str = ""
    at_most: bool = False

    def markdown(self) -> str:
        mark = "" if self.mark is None else f"{'≤' if self.at_most else '≥'} {shown(self.mark)} {self.unit}"
        if len(self.values) == 0:
            return f"| {self.what} | | {mark} | not measured | {self.note} |"
        median, low, high = (shown(f(self.values)) for f in (np.median, np.min, np.max))
        return f"| {self.what} | {median} {self.unit} ({low} to {high}) | {mark} | {self.verdict()} | {self.note} |"

    def verdict(self) -> str:
        if self.mark is None:
            return ""
        median = float(np.median(self.values))
        if median <= self.mark if self.at_most else median >= self.mark:
            return "met"
        gap = abs(median - self.mark)
        return f"missed by {gap / self.mark:.0%}" if self.mark else f"missed by {shown(gap)} {self.unit}"


def ratio(what: str, fast: np.ndarray, slow: np.ndarray, mark: float | None = None, note: str = "") -> Row:
    """How many times as fast."""
    return Row(what, fast / slow, "x", mark, "; ".join(filter(None, [f"{rate(fast)} beside {rate(slow)}", note])))


def alternated(pairs: int, *works: Callable[[], float]) -> np.ndarray:
    """What each of the works returns, [works, pairs]: A B, B A, ... so that a machine that changes meets all alike."""
    measured = np.zeros((len(works), pairs))
    for pair in range(pairs):
        for i in range(len(works)) if pair % 2 == 0 else reversed(range(len(works))):
            measured[i, pair] = works[i]()
    return measured


def learning(model: Any) -> Callable[[], float]:
    """An iteration of training, which goes on where the last one ended; its steps a second."""

    def work() -> float:
        steps, began = model.n_steps * model.n_envs, now(model.device)
        model.learn(steps, log_interval=None, reset_num_timesteps=False)
        return steps / (now(model.device) - began)

    return work


def with_threads(threads: int, work: Callable[[], float]) -> float:
    torch.set_num_threads(threads)
    try:
        return work()
    finally:
        torch.set_num_threads(1)


def limit(rates: np.ndarray, bytes_a_step: float, device: torch.device, threads: int = 1) -> str:
    """The share of the rate at which the bytes of a step could be moved."""
    per_s = copy_bytes_per_s(device, threads)
    share = 100 * np.median(rates) / (per_s / bytes_a_step)
    return f"{share:.2g}% of {rate(per_s / bytes_a_step)}: {bytes_a_step:,.0f} B each at {per_s / 1e9:,.0f} GB/s"


@cache
def copy_bytes_per_s(device: torch.device, threads: int = 1) -> float:
    """Read and written by a copy far larger than any cache."""
    source = torch.ones(2**26 if device.type == "cpu" else 2**30, device=device)
    target = torch.empty_like(source)
    return with_threads(threads, lambda: 2 * source.nbytes / fastest(lambda: target.copy_(source), device))


def fastest(work: Callable[[], Any], device: torch.device, times: int = 5) -> float:
    """Seconds, the least of some tries."""
    return min(seconds(work, device) for _ in range(times))


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    began = now(device)
    work()
    return now(device) - began


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def rate(rates: np.ndarray | float) -> str:
    return f"{shown(np.median(rates))} steps/s"


def shown(x: float | np.floating) -> str:
    """Three digits, as 1.59M."""
    x = float(f"{x:.3g}")
    size, letter = next((s for s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(x) >= s[0]), (1.0, ""))
    return f"{x / size:.3g}{letter}"


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{cpu}, {CORES} cores, {memory_gb:.0f} GB, {gpu}"


def conditions(pairs: int, peers: Path | None) -> str:
    """Versions, here and in the environment of that Python, and the load."""
    told = f"Python {platform.python_version()}, {_versions(sys.executable, 'stable-baselines3', 'gymnasium')}"
    if peers:
        told += f"; peers with {_versions(str(peers), 'cleanrl', 'pufferlib')}"
    return f"{told}. Load at the start {os.getloadavg()[0]:.1f}; {pairs} pairs."


def _versions(python: str, *packages: str) -> str:
    ask = "import importlib.metadata as m, sys; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    return subprocess.run(
        [python, "-c", ask, "torch", "numpy", *packages], capture_output=True, text=True
    ).stdout.strip()


def write_section(path: Path, heading: str, above: str, lines: Sequence[str], merge: bool) -> None:
    """Replaces the section of that heading, or adds it. Where told to `merge`, rows that were not measured now stay,
    marked as of before."""
    rows = {_what(line): line for line in lines}
    if merge:
        before = [line for line in read_section(path, heading).splitlines() if line.startswith("| ")][1:]
        rows = {_what(line): _marked(line) for line in before} | rows
    add_section(path, TITLE, heading, "\n".join([above, "", HEAD, *rows.values()]))


def _what(line: str) -> str:
    """What a row of a table is about, without the mark of an earlier measurement."""
    return line.split("|")[1].strip().removesuffix(EARLIER)


def _marked(line: str) -> str:
    return line.replace(line.split("|")[1], f" {_what(line)}{EARLIER} ", 1)
