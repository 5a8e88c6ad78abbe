"""What fits to large tables cost and bring: a section of `benchmarks/SCALE.md`.

python benchmarks/scale_fits.py --questions tables/mmlu_pro
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
import torch
import tyro
from sections import add_section

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agents.estimators import Estimates  # noqa: E402
from agents.estimators.base import sample_rows  # noqa: E402
from agents.estimators.ensemble import fit_predictor  # noqa: E402
from agents.estimators.models import MODELS  # noqa: E402
from leeroo_env import ExpertTable  # noqa: E402
from leeroo_env.table import ExpertInfo, TableInfo, write_mapped  # noqa: E402

BLOCK = 2**14
HIDDEN = 256
TRAIN = 0.9  # of a table's queries


def widened(questions: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """[n, D] float32 of length 1: mixtures of two questions' embeddings [N, D] and a little noise, all different."""
    first, second = rng.integers(len(questions), size=(2, n))
    share = rng.uniform(0, 0.5, size=(n, 1)).astype(np.float32)
    x = (1 - share) * questions[first] + share * questions[second]
    x += rng.standard_normal(x.shape, dtype=np.float32) * 0.2 / x.shape[1] ** 0.5
    return x / np.linalg.norm(x, axis=1, keepdims=True)


class Outcomes:
    """What experts score and cost, as a known function of embeddings.

    Expert k is right with the chance sigmoid(skill_k - 2 difficulty(x) + topic_k(x)): difficulty and topics are random
    features of the embedding, smooth ones and ones that change between neighbouring questions. Costs grow with a
    length that is such a function, too.
    """

    def __init__(self, dim: int, experts: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        frequency = np.geomspace(0.5, 4, HIDDEN, dtype=np.float32)
        self.directions = rng.standard_normal((dim, HIDDEN), dtype=np.float32) * frequency
        self.phases = rng.uniform(0, 2 * np.pi, HIDDEN).astype(np.float32)
        shared = rng.standard_normal((HIDDEN, 5), dtype=np.float32) / frequency[:, None] ** 0.5
        self.shared = shared / np.linalg.norm(shared, axis=0) * 2**0.5  # each of the features has variance 1/2
        self.loadings = rng.standard_normal((3, experts), dtype=np.float32) * 0.6
        self.skill = np.linspace(-1.5, 1.5, experts, dtype=np.float32)
        self.price_usd = np.geomspace(1e-4, 1e-2, experts, dtype=np.float32)

    def of(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The chances of being right and the mean costs_usd of embeddings [n, D], both [n, K]."""
        features = np.cos(x @ self.directions + self.phases) @ self.shared
        difficulty, topics, length = features[:, :1], features[:, 1:4], features[:, 4:]
        chance = 1 / (1 + np.exp(1.5 * difficulty - self.skill - topics @ self.loadings))
        return chance, self.price_usd * np.exp(0.5 * length)


def make_table(path: Path, questions: np.ndarray, n: int, experts: int = 20, seed: int = 0) -> None:
    """Writes a mapped table of n widened questions, nine in ten for training, whose optimum is known."""
    infos = tuple(ExpertInfo(name=f"expert-{i}") for i in range(experts))
    write_mapped(path, TableInfo(name=f"widened-{n}", experts=infos), _blocks(questions, n, experts, seed))


def _blocks(questions: np.ndarray, n: int, experts: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    rng, outcomes = np.random.default_rng(seed), Outcomes(questions.shape[1], experts)
    for start in range(0, n, BLOCK):
        rows = min(BLOCK, n - start)
        x = widened(questions, rows, rng).astype(np.float16)
        chance, cost_usd = outcomes.of(x.astype(np.float32))
        noise = np.exp(0.3 * rng.standard_normal(chance.shape, dtype=np.float32))
        yield {
            "scores": (rng.random(chance.shape) < chance).astype(np.float16),
            "costs_usd": cost_usd * noise,
            "embeddings": x,
            "split": np.array([0] * 18 + [1, 2], np.int8)[rng.integers(20, size=rows)],
        }


@dataclass(frozen=True)
class Fit:
    """What a fit took and brought.

    Attributes:
        queries: fitted to.
        cpu_s: of the process, on all cores.
        peak_mb: of the resident memory of the process, pages of mapped files included.
        error: squared error of the estimated chances of being right against the true ones, in parts of their variance.
        lost: net score that is lost against the best choice by the true chances and costs, mean over the prices.
    """

    queries: int
    cpu_s: float
    peak_mb: float
    error: float
    lost: float

    def line(self, name: str) -> str:
        cells = (
            f"{self.queries:,}",
            f"{self.cpu_s:.0f}",
            f"{self.peak_mb:,.0f}",
            f"{self.error:.3f}",
            f"{self.lost:.4f}",
        )
        return f"| {name} | {' | '.join(cells)} |"


HEADER = [
    "| fit | training queries | CPU s | peak memory, MB | error of chances | net score lost |",
    "|---|---|---|---|---|---|",
]
PRICES = (0.0, 30.0, 100.0, 300.0, 1000.0)  # score a dollar
HELD_OUT = 10_000


def measure(path: Path, n: int, method: str, threads: int) -> Fit:
    """In a process of its own: fits one of `FITS` to n training queries of a table that `make_table` wrote, and
    compares it with the truth on queries that are not for training."""
    torch.set_num_threads(threads)
    table = ExpertTable.load(path)
    train = table.rows("train")
    split = torch.full_like(table.split, 2)
    split[sample_rows(train, n, 0)] = 0
    split[table.rows("val")] = 1
    fitted = replace(table, split=split)
    start = process_time()
    model = FITS[method](fitted)
    cpu_s, peak_mb = process_time() - start, getrusage(RUSAGE_SELF).ru_maxrss / 1024
    held_out = torch.cat([table.rows("val"), table.rows("test")])[:HELD_OUT]
    x = table.embeddings[held_out].float()
    estimates = model.predict(x)
    estimates = estimates if isinstance(estimates, Estimates) else Estimates.from_joint(estimates)
    chance, cost_usd = (torch.from_numpy(part) for part in Outcomes(x.shape[1], len(table.experts)).of(x.numpy()))
    error = (estimates.score - chance).square().mean() / (chance - chance.mean(dim=0)).square().mean()
    lost = []
    for price in PRICES:
        net = chance - price * cost_usd
        chosen = (estimates.score - price * estimates.cost_usd).argmax(dim=1, keepdim=True)
        lost.append(float((net.amax(dim=1) - net.gather(1, chosen).squeeze(1)).mean()))
    return Fit(min(n, len(train)), cpu_s, peak_mb, float(error), float(np.mean(lost)))


FITS: dict[str, Callable[[ExpertTable], Any]] = {
    "the agent's estimates": fit_predictor,
    "kernel ridge": lambda table: MODELS["kernel ridge"](table, 0),
    "kNN": lambda table: MODELS["kNN"](table, 0),
    "MLP": lambda table: MODELS["MLP"](table, 0),
    "LinUCB": lambda table: MODELS["LinUCB"](table, 0),
}


def fits(
    questions: str = "tables/mmlu_pro",
    queries: tuple[int, ...] = (100_000,),
    parts: tuple[int, ...] = (6_000,),
    experts: int = 20,
    methods: tuple[str, ...] = ("the agent's estimates",),
    threads: int = 2,
) -> None:
    """Fits estimators to large tables whose optimum is known, each in a process of its own.

    Args:
        questions: a table directory whose embeddings are mixed to make queries.
        queries: training queries of the tables.
        parts: of these that are fitted alone, for comparison.
        experts: K.
        methods: which of `FITS`.
        threads: of torch.
    """
    embeddings = np.load(Path(questions) / "embeddings.npy").astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    lines = [*HEADER]
    for n in queries:
        with TemporaryDirectory() as directory:
            make_table(Path(directory) / "table", embeddings, round(n / TRAIN) + 100, experts)
            for method in methods:
                for m in (n, *parts):
                    with ProcessPoolExecutor(1, get_context("spawn")) as process:
                        fit = process.submit(measure, Path(directory) / "table", m, method, threads).result()
                    lines.append(fit.line(f"{method}, {experts} experts"))
                    print(lines[-1], flush=True)
    text = f"{threads} thread(s). {EXPLAINED}\n\n" + "\n".join(lines)
    heading = f"Fits to {', '.join(f'{n:,}' for n in queries)} training queries, {experts} experts"
    add_section(ROOT / "benchmarks" / "SCALE.md", TITLE, heading, text)


TITLE = "# What many queries cost"
EXPLAINED = (
    "Queries are mixtures of the embeddings of two real questions (MiniLM), outcomes are drawn from a known function "
    "of these, so that the best choice is known; 0 is perfect in the last two columns. The error is that of the "
    "estimated chances of being right, in parts of their variance; the net score is score less price x cost, mean "
    "over five prices."
)


if __name__ == "__main__":
    tyro.cli(fits)
