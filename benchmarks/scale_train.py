"""What training takes in one process and in several that share the queries: a section of `benchmarks/SCALE.md`.

    python benchmarks/scale_train.py

Processor time and memory only, as other programs may run; on free cores a run takes as long as its slowest process.
"""

from __future__ import annotations

import os
import socket
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import process_time

import numpy as np
import torch
import tyro
from sections import add_section
from stable_baselines3.common.logger import Logger

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agents.distributed import Processes, processes  # noqa: E402
from agents.training.config import TrainConfig  # noqa: E402
from agents.training.factory import make_model  # noqa: E402
from agents.training.parallel import Follower, follow, lead, own_rules  # noqa: E402
from leeroo_env import ExpertTable  # noqa: E402
from leeroo_env.dynamics import Rules, make_rules  # noqa: E402

TITLE = "# What many queries cost"


@dataclass(frozen=True)
class Cost:
    """Of one process: processor time to train, from the tables' being there, and how much memory that has added."""

    cpu_s: float
    mb: float


def made_rules(n: int, experts: int) -> Rules:
    """Of n training queries with made-up scores, costs and estimates; without texts."""
    rng = np.random.default_rng(0)
    scores, noise = (rng.random((n, experts), dtype=np.float32) for _ in range(2))
    costs_usd = (0.5 + noise) * 1e-4 * np.geomspace(1, 100, experts, dtype=np.float32)
    table = ExpertTable.from_arrays(
        "made-up", [f"expert-{k}" for k in range(experts)], noise[:, :1], scores.round(), costs_usd, split=["train"] * n
    )
    return make_rules(table, features=torch.from_numpy(np.concatenate([scores, noise], axis=1)))


def train(rank: int, environment: dict[str, str], n: int, experts: int, config: TrainConfig) -> Cost:
    """One of the processes."""
    os.environ |= {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    model, _ = make_model(TrainConfig(n_envs=8), "bid-price", made_rules(100, experts))
    model.learn(1)  # so that what is loaded on first use does not count
    with processes() as own:
        rules = made_rules(n, experts) if rank == 0 else None
        cpu_s, kb = process_time(), getrusage(RUSAGE_SELF).ru_maxrss
        if rules is None:
            follow(own)
        else:
            _lead(own, rules, config)
        return Cost(process_time() - cpu_s, (getrusage(RUSAGE_SELF).ru_maxrss - kb) / 1024)


def _lead(own: Processes, rules: Rules, config: TrainConfig) -> None:
    model, _ = make_model(config, "bid-price", own_rules(rules, own), own)
    model.set_logger(Logger(None, []))
    lead(own, config, "bid-price", rules, model)
    model.learn(config.timesteps, Follower(own, config.timesteps))


def measure(
    queries: int = 200_000,
    experts: int = 20,
    n_envs: tuple[int, ...] = (1024, 4096),
    steps: int = 1_048_576,
    worlds: tuple[int, ...] = (1, 2),
) -> None:
    """Trains the default policy of one call, each time in fresh processes.

    Args:
        queries: for training.
        experts: K.
        n_envs: episodes at the same time, of all processes together.
        steps: of all processes together.
        worlds: numbers of processes.
    """
    lines = [
        "| episodes at a time | processes | processor seconds of each | steps a processor second of one | MB that a "
        "further one took |",
        "|---|---|---|---|---|",
    ]
    for episodes in n_envs:
        for world in worlds:
            config = TrainConfig(n_envs=episodes, timesteps=steps, max_calls=1)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            environment = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            with ProcessPoolExecutor(world, get_context("spawn")) as pool:
                tasks = [pool.submit(train, rank, environment, queries, experts, config) for rank in range(world)]
                costs = [task.result() for task in tasks]
            seconds, slowest = ", ".join(f"{cost.cpu_s:.1f}" for cost in costs), max(cost.cpu_s for cost in costs)
            mb = f"{costs[-1].mb:.0f}" if world > 1 else ""
            lines.append(f"| {episodes:,} | {world} | {seconds} | {steps / slowest:,.0f} | {mb} |")
            print(lines[-1], flush=True)
    text = (
        f"{steps:,} steps of PPO with one call on {queries:,} training queries and {experts} experts "
        f"(`python benchmarks/scale_train.py`), by gloo on CPUs, a thread each; sending the shares is counted. On free "
        f"cores a run takes as long as its slowest process.\n\n" + "\n".join(lines)
    )
    add_section(ROOT / "benchmarks" / "SCALE.md", TITLE, "Training in several processes", text)


if __name__ == "__main__":
    tyro.cli(measure)
