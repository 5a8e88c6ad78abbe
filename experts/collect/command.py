"""Collects answers from the command line.

    python -m experts.collect --pool pool.yaml --queries questions.jsonl --out tables/mine --grader number

Exit codes: 0 everything is there; 1 answers are missing (calls failed, replies were empty, the spend cap was reached,
an expert or the judge was given up) and the table, if there is one, has the others; 2 bad input; 130 interrupted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from experts.cluster.connect import Cluster, connect
from experts.cluster.data import read_rows
from experts.collect.estimate import Estimate, estimate, probe
from experts.collect.pipeline import Collected, check_collection, collect
from experts.collect.scheduler import ExpertQueue
from experts.collect.summary import warnings_of
from experts.data.queries import load_queries
from experts.encoder import Encoder
from experts.pool import load_pool
from experts.specs import Pool
from experts.types import Query
from leeroo_env.cli import exit_code, printable
from leeroo_env.errors import InputError
from leeroo_env.threads import set_threads
from leeroo_env.variants import entry_of


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
    """estimate the cost, from a few real calls whose answers are kept"""
    probe: int = 5
    """calls per expert that --dry-run measures; 0 asks nothing"""
    grade_empty: bool = False
    """count replies without a text as wrong answers, at their cost, instead of asking again"""
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """sentence-transformers or transformers model that embeds the queries"""
    device: str = "cpu"
    """where the encoder runs"""
    threads: int = 1
    """torch threads of the encoder and of local models on the CPU"""
    engine: Literal["local", "ray"] = "local"
    """ray: a cluster asks, grades and embeds; queries may be a directory or an address that fsspec knows"""
    address: str | None = None
    """the Ray cluster, HOST:PORT or auto; by default that of RAY_ADDRESS, else one is started on this machine"""


def run(config: Config) -> int:
    """Collects as configured. Returns the exit code: 0, or 1 if answers are missing."""
    if config.max_usd is not None and not config.max_usd >= 0:
        raise InputError(f"--max-usd: {config.max_usd} is not an amount >= 0")
    if config.probe < 0:
        raise InputError(f"--probe: {config.probe} is not a number of calls >= 0")
    if config.engine == "local" and config.address is not None:
        raise InputError("--address goes with --engine ray")
    set_threads(max(1, config.threads))
    pool = load_pool(config.pool)
    if config.engine == "ray":
        with connect(config.address, max(1, config.threads)) as cluster:
            return _run(config, pool, cluster)
    return _run(config, pool, None)


def _run(config: Config, pool: Pool, cluster: Cluster | None) -> int:
    names = config.experts.split(",") if config.experts is not None else None
    pool.select(names)
    queries = load_queries(config.queries, config.limit, config.split, read_rows if cluster else None)
    out = config.out.resolve()
    check_collection(queries, out, config.grader, config.judge)
    if config.dry_run:
        return _dry_run(config, pool, queries, out, names)
    collected = collect(
        pool,
        queries,
        out,
        Encoder(config.encoder, device=config.device),
        grader=config.grader,
        judge=config.judge,
        experts=names,
        max_usd=config.max_usd,
        grade_empty=config.grade_empty,
        show_progress=True,
        cluster=cluster,
    )
    return _report(collected, config, pool, len(queries))


def _dry_run(config: Config, pool: Pool, queries: list[Query], out: Path, names: Sequence[str] | None) -> int:
    """Asks a few queries, unless --probe is 0, and prints what the others may cost; 1 if an expert gave no answer."""
    queues: list[ExpertQueue] = []
    if config.probe:
        queues = probe(pool, queries, out, names, calls=config.probe, max_usd=config.max_usd)
        answers, usd = sum(queue.done for queue in queues), sum(queue.usd for queue in queues)
        print(f"asked {sum(queue.total for queue in queues)} queries for ${usd:.6f}; {answers} answers are kept")
    for queue in queues:
        _print(_problems(queue, config.max_usd))
    estimates = estimate(pool, queries, out, names)
    _print(_estimate_line(one) for one in estimates)
    usd, worst_usd = sum(one.usd for one in estimates), sum(one.worst_usd for one in estimates)
    errors = [one.error_usd for one in estimates]
    error_usd = None if None in errors else math.hypot(*(error or 0.0 for error in errors))
    print(f"all: {_dollars(usd, error_usd, worst_usd)}")
    if config.judge:
        print(f"{config.judge} judges every answer; what that costs is not in the estimate")
    return 1 if any(queue.total and not queue.done for queue in queues) else 0


def _estimate_line(one: Estimate) -> str:
    basis = "" if one.measured or not one.to_ask else ", nothing measured, so for answers of max_tokens"
    return (
        f"{one.expert}: {one.to_ask} to ask ({one.stored} stored), "
        f"{_dollars(one.usd, one.error_usd, one.worst_usd)}{basis}"
    )


def _dollars(usd: float, error_usd: float | None, worst_usd: float) -> str:
    """An estimate with its 95 % interval, cut off at zero and at the worst case, and the worst case."""
    if error_usd is None:
        return f"about ${usd:.4g}, at most ${worst_usd:.4g}"
    low, high = max(usd - error_usd, 0.0), min(usd + error_usd, worst_usd)
    return f"about ${usd:.4g} (95 %: ${low:.4g} to ${high:.4g}), at most ${worst_usd:.4g}"


def _report(collected: Collected, config: Config, pool: Pool, n_queries: int) -> int:
    """Prints the result of a run and returns the exit code."""
    names = {spec.name for spec in pool.experts}
    for queue, summary in zip(collected.queues, collected.summaries, strict=True):
        score = f", mean score {summary.score:.3f}" if summary.score is not None else ""
        counts = f", {summary.counts()}" if summary.counts() else ""
        _print([f"{summary.expert}: {queue.status()}{score}{counts}", *_problems(queue, config.max_usd)])
        (spec,) = pool.select([summary.expert])
        is_variant = entry_of(spec.name, names) != spec.name
        for warning in warnings_of(summary, spec, config.grader, config.grade_empty, is_variant):
            print(f"warning: {printable(warning)}", file=sys.stderr)
    again = "; run again to ask for them" if collected.missing else ""
    print(f"spent ${collected.spent_usd:.6f}, {collected.missing} answers missing{again}")
    table = collected.table
    print(table or f"{config.out}: no table yet, as no query has an answer of every expert")
    _print(_without(collected, n_queries))
    return 1 if collected.missing else 0


def _problems(queue: ExpertQueue, max_usd: float | None) -> Iterator[str]:
    """Why an expert was not asked everything, or did not answer."""
    name = queue.expert.name
    if queue.capped and max_usd is not None and queue.least_usd > max_usd:
        yield (
            f"{name}: needs at least ${queue.least_usd:.4g} for one call (worst case); raise --max-usd, which is "
            f"${max_usd:.4g}"
        )
    elif queue.capped:
        yield f"{name}: what is left of --max-usd does not pay for the worst case of another call"
    if queue.given_up:
        yield f"{name}: given up after {queue.failed} failed calls"
    if queue.failed:
        yield f"{name}: last error: {queue.error}"


def _without(collected: Collected, n_queries: int) -> Iterator[str]:
    """Which experts keep queries out of the table, and how to make it without them."""
    lacking = [one.expert for one in collected.summaries if one.graded < n_queries / 2]
    others = [one.expert for one in collected.summaries if one.expert not in lacking]
    if lacking and others:
        yield f"--experts {','.join(others)} makes the table without {', '.join(lacking)}"


def _print(lines: Iterator[str] | Sequence[str]) -> None:
    """Prints lines, in which servers may have written, so that a terminal takes nothing in them for a command."""
    for line in lines:
        print(printable(line))


def main(arguments: Sequence[str] | None = None, prog: str = "python -m experts.collect") -> int:
    """The command line; returns the exit code."""

    def work() -> int:
        return run(tyro.cli(Config, prog=prog, description=__doc__, args=arguments))

    return exit_code(work, "the answers so far are kept, run again to continue")
