"""Collects answers from the command line.

    python -m experts.collect --pool pool.yaml --queries questions.jsonl --out tables/mine --grader number

Exit codes: 0 everything is there; 1 answers are missing (calls failed, the spend cap was reached, an expert or the
judge was given up) and the table, if there is one, has the others; 2 bad input; 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from experts.collect.estimate import Estimate, estimate
from experts.collect.pipeline import Collected, check_collection, collect
from experts.data.queries import load_queries
from experts.encoder import Encoder
from experts.pool import load_pool
from experts.spending import CHARS_PER_TOKEN
from leeroo_env.cli import exit_code
from leeroo_env.errors import InputError


@dataclass(frozen=True)
class Config:
    """Asks every expert of a pool every query and writes the table directory. Run it again to continue."""

    pool: Path
    """pool.yaml"""
    queries: str
    """JSONL, CSV or parquet file, or the name of a Hugging Face data set"""
    out: Path
    """the table directory; the answers are kept in OUT.parts"""
    grader: str = "exact"
    """multiple-choice, number, exact, math or judge"""
    judge: str | None = None
    """the expert of the pool that judges, with --grader judge"""
    experts: str | None = None
    """names of the experts to ask, separated by commas; all by default"""
    split: str | None = None
    """of a file, only the rows of this split; of a data set, the split to load"""
    limit: int | None = None
    """use only this many queries, from the beginning"""
    max_usd: float | None = None
    """the most that this run may spend, in dollars"""
    dry_run: bool = False
    """only estimate the cost"""
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """sentence-transformers or transformers model that embeds the queries"""
    device: str = "cpu"
    """where the encoder runs"""
    threads: int = 1
    """torch threads of the encoder and of local models on the CPU"""


def run(config: Config) -> int:
    """Collects as configured. Returns the exit code: 0, or 1 if answers are missing."""
    if config.max_usd is not None and not config.max_usd >= 0:
        raise InputError(f"--max-usd: {config.max_usd} is not an amount >= 0")
    torch.set_num_threads(max(1, config.threads))
    pool = load_pool(config.pool)
    names = config.experts.split(",") if config.experts is not None else None
    pool.select(names)
    queries = load_queries(config.queries, limit=config.limit, split=config.split)
    out = config.out.resolve()
    check_collection(queries, out, config.grader, config.judge)
    if config.dry_run:
        _print_estimates(estimate(pool, queries, out, names))
        return 0
    collected = collect(
        pool,
        queries,
        out,
        Encoder(config.encoder, device=config.device),
        grader=config.grader,
        judge=config.judge,
        experts=names,
        max_usd=config.max_usd,
        show_progress=True,
    )
    return _report(collected, config.out)


def _print_estimates(estimates: Sequence[Estimate]) -> None:
    print(
        f"Estimate (nothing was asked): {CHARS_PER_TOKEN} bytes per prompt token, answers as long as max_tokens allows"
    )
    for one in estimates:
        print(
            f"{one.expert}: {one.to_ask} to ask ({one.stored} stored), {one.prompt_tokens:,} prompt tokens, "
            f"${one.usd:.4f}, at most ${one.worst_usd:.4f}"
        )
    usd, worst_usd = sum(one.usd for one in estimates), sum(one.worst_usd for one in estimates)
    print(f"all: ${usd:.4f}, at most ${worst_usd:.4f}")


def _report(collected: Collected, out: Path) -> int:
    """Prints the result of a run and returns the exit code."""
    for queue in collected.queues:
        score = collected.mean_scores.get(queue.expert.name)
        print(f"{queue.expert.name}: {queue.status()}" + (f", mean score {score:.3f}" if score is not None else ""))
        if queue.failed:
            print(f"{queue.expert.name}: last error: {queue.error}")
    again = "; run again to ask for them" if collected.missing else ""
    print(f"spent ${collected.spent_usd:.6f}, {collected.missing} answers missing{again}")
    print(collected.table or f"{out}: no table yet, as no query has an answer of every expert")
    return 1 if collected.missing else 0


def main(arguments: Sequence[str] | None = None, prog: str = "python -m experts.collect") -> int:
    """The command line; returns the exit code."""

    def work() -> int:
        return run(tyro.cli(Config, prog=prog, description=__doc__, args=arguments))

    return exit_code(work, "the answers so far are kept, run again to continue")
