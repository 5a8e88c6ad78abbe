"""What a table's size costs, from 10 thousand to 10 million queries: memory, and steps per second of play and training.

python benchmarks/large_tables.py --queries 10000 100000 1000000 10000000

Makes tables up in a temporary directory, in the mapped form, and removes them. Their embeddings are what the default
policy plays on: each expert's estimated score and cost, in float16. Every table is loaded by a process of its own;
these play random actions in turn, then train the default policy, without a plan, in turn, so that what else the machine
does meets all sizes alike.

The files have just been written, so that the page cache holds them: seconds to load are of checking, not of a disk. A
step reads a few cache lines at random for each episode. Small tables fit the processor's caches; of large ones
every such line comes from memory, and through another page: that is what is left of the ratio to the smallest.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agents.training.config import TrainConfig  # noqa: E402
from agents.training.factory import make_model  # noqa: E402
from leeroo_env import ExpertTable, LeerooVectorEnv  # noqa: E402
from leeroo_env.table import ExpertInfo, TableInfo, write_mapped  # noqa: E402

BLOCK = 2**16
MB = 2**20


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process: its own, which nothing else can use, and pages of files, which the system can."""

    anonymous_mb: float
    files_mb: float

    def since(self, before: Memory) -> Memory:
        return Memory(self.anonymous_mb - before.anonymous_mb, self.files_mb - before.files_mb)


@dataclass(frozen=True)
class Row:
    """What one size costs. Memory is what was added to the process since before the table was loaded.

    Attributes:
        queries: N.
        size_mb: of the files.
        load_s: `ExpertTable.load`, which maps and checks.
        make_s: making the environment, which takes means of the costs and the range of the embeddings.
        loaded: memory after loading.
        played: memory after playing.
        trained: memory after training.
        speeds: [rounds] steps a second of all episodes together, played.
        training_speeds: [rounds] the same of training.
    """

    queries: int
    size_mb: float
    load_s: float
    make_s: float
    loaded: Memory
    played: Memory
    trained: Memory
    speeds: np.ndarray
    training_speeds: np.ndarray


def main(
    queries: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000),
    experts: int = 20,
    envs: int = 1024,
    steps: int = 256,
    rounds: int = 5,
) -> None:
    """Measures and prints a table.

    Args:
        queries: sizes of the tables.
        experts: K.
        envs: episodes played at a time.
        steps: of each of them, in a round.
        rounds: for each size, taken in turn.
    """
    print(markdown(measure(queries, experts, envs, steps, rounds)))


def measure(
    queries: Sequence[int], experts: int = 20, envs: int = 1024, steps: int = 256, rounds: int = 5
) -> list[Row]:
    """A row for each size, smallest first; arguments as in `main`."""
    sizes = sorted(queries)
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory) / str(n) for n in sizes]
        for path, n in zip(paths, sizes, strict=True):
            make_table(path, n, experts)
        processes = [ProcessPoolExecutor(1, get_context("spawn")) for _ in sizes]
        try:
            begun = [p.submit(begin, path, envs).result() for p, path in zip(processes, paths, strict=True)]
            speeds = [[p.submit(play, steps).result() for p in processes] for _ in range(rounds)]
            played = [p.submit(added).result() for p in processes]
            for process in processes:
                process.submit(begin_training, envs).result()
            training_speeds = [[p.submit(learn).result() for p in processes] for _ in range(rounds)]
            trained = [p.submit(added).result() for p in processes]
        finally:
            for process in processes:
                process.shutdown()
        sizes_mb = [sum(file.stat().st_size for file in path.iterdir()) / MB for path in paths]
    memory, measured = (
        zip(played, trained, strict=True),
        zip(np.transpose(speeds), np.transpose(training_speeds), strict=True),
    )
    return [
        Row(n, size_mb, *start, *used, *both)
        for n, size_mb, start, used, both in zip(sizes, sizes_mb, begun, memory, measured, strict=True)
    ]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table; memory in MB (2^20 bytes), own + pages of files; speeds are medians."""
    names = ("queries", "files, MB", "load, s", "make env, s", "memory after load", "after playing", "after training")
    lines = [f"| {' | '.join(names)} | steps/s | to smallest | training, steps/s | to smallest |", "|---:" * 11 + "|"]
    for row in rows:
        memory = [f"{m.anonymous_mb:.0f} + {m.files_mb:.0f}" for m in (row.loaded, row.played, row.trained)]
        cells = [f"{row.queries:,}", f"{row.size_mb:,.0f}", f"{row.load_s:.2f}", f"{row.make_s:.2f}", *memory]
        for name in ("speeds", "training_speeds"):
            speed, smallest = (np.median(getattr(r, name)) for r in (row, rows[0]))
            cells += [f"{speed:,.0f}", f"{speed / smallest:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def make_table(path: Path, n: int, experts: int = 20, seed: int = 0) -> None:
    """Writes a made-up table of n queries, of which eight in ten are for training, a block at a time.

    Queries differ in difficulty and length, experts in skill and in price, by a factor of ten; what
    the embeddings tell of a query's scores and costs is right up to noise.
    """
    infos = tuple(ExpertInfo(name=f"expert-{i}") for i in range(experts))
    write_mapped(path, TableInfo(name=f"made-up-{n}", experts=infos), _blocks(n, experts, seed))


def _blocks(n: int, experts: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    skill = np.linspace(-1, 2, experts, dtype=np.float32)
    price_usd = np.geomspace(1e-4, 1e-3, experts, dtype=np.float32)
    for start in range(0, n, BLOCK):
        rows = min(BLOCK, n - start)
        difficulty, length, noise = rng.standard_normal((3, rows, 1), dtype=np.float32)
        chance = 1 / (1 + np.exp(1.5 * difficulty - skill))
        estimate = 1 / (1 + np.exp(1.5 * difficulty + 0.5 * noise - skill))
        costs_usd = price_usd * np.exp(0.3 * length)
        yield {
            "scores": (rng.random((rows, experts), dtype=np.float32) < chance).astype(np.float16),
            "costs_usd": costs_usd,
            "embeddings": np.concatenate([estimate, costs_usd / price_usd[-1]], axis=1).astype(np.float16),
            "split": np.array([0] * 8 + [1, 2], np.int8)[rng.integers(10, size=rows)],
        }


PLAYED: dict[str, LeerooVectorEnv] = {}  # of the process that plays
TRAINED: dict[str, Any] = {}
BEFORE: dict[str, Memory] = {}


def begin(path: Path, envs: int) -> tuple[float, float, Memory]:
    """In a process of its own: loads the table and makes its environment; seconds of both, memory after loading."""
    torch.set_num_threads(1)
    LeerooVectorEnv(envs).reset(seed=0)  # so that what is loaded on first use counts for no size
    BEFORE["load"] = resident()
    start = time.perf_counter()
    table = ExpertTable.load(path)
    load_s, loaded = time.perf_counter() - start, added()
    start = time.perf_counter()
    PLAYED["env"] = LeerooVectorEnv(envs, table)
    make_s = time.perf_counter() - start
    PLAYED["env"].reset(seed=0)
    play(64)
    return load_s, make_s, loaded


def play(steps: int) -> float:
    """Plays random actions; steps a second of all episodes together."""
    env = PLAYED["env"]
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(steps):
        env.step(rng.integers(env.rules.n_actions, size=env.num_envs))
    return steps * env.num_envs / (time.perf_counter() - start)


def begin_training(envs: int) -> None:
    """Makes what `train.py` does by default, but for the plan, and lets it warm up."""
    TRAINED["model"], _ = make_model(TrainConfig(n_envs=envs), "bid-price", PLAYED["env"].rules)
    learn()


def learn() -> float:
    """An iteration of training; its steps a second."""
    model = TRAINED["model"]
    steps = model.n_steps * model.n_envs
    start = time.perf_counter()
    model.learn(steps, log_interval=None, reset_num_timesteps=False)
    return steps / (time.perf_counter() - start)


def added() -> Memory:
    return resident().since(BEFORE["load"])


def resident() -> Memory:
    """Of this process, now; Linux only."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Memory(*(int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")))


if __name__ == "__main__":
    tyro.cli(main)
