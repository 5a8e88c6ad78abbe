"""Asks every expert every query and writes the table directory.

    python -m experts.collect --pool pool.yaml --queries questions.jsonl --out tables/mine --grader number

Answers are kept in `OUT.parts` as they come (see `store`): a run that was killed and is started again asks only
what is missing. An expert behind a server has at most 2 · concurrency answers on the way to the disk at any time, a
local model one batch, a judge 32: that is the most that a kill can lose.

Exit codes: 0 everything is there; 1 answers are missing (calls failed, the spend cap was reached, an expert or the
judge was given up) and the table, where there is one, holds the rest; 2 bad input; 130 interrupted.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import tyro

from experts.collect.scheduler import ExpertQueue, ask_all, make_queue
from experts.collect.store import StoredExpert, open_store, read_parts, successes
from experts.grading import GRADERS, Grade, judge_batch
from experts.pool import keys_for, load_pool, make_experts
from experts.specs import ExpertSpec, OpenAISpec, Pool
from experts.spending import SpendCap
from experts.types import Answer, Expert, Query, TextEncoder
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertInfo, ExpertTable, TableInfo, write_table

BYTES_PER_TOKEN = 4
JUDGE_BATCH = 32
UNGRADED = Grade(0.0, None)


@dataclass(frozen=True)
class Row:
    """One answer with its grade."""

    expert: str
    query: Query
    answer: Answer
    grade: Grade = UNGRADED


@dataclass(frozen=True)
class Collected:
    """What a run did. `table` is None where no query has an answer of every expert yet."""

    queues: list[ExpertQueue]
    table: ExpertTable | None
    mean_scores: dict[str, float]
    missing: int
    spent_usd: float


@dataclass(frozen=True)
class Estimate:
    """What asking one expert the rest would cost, before it is asked."""

    expert: str
    stored: int
    to_ask: int
    prompt_tokens: int  # estimated from the prompts' lengths
    usd: float  # by that estimate, where every answer is as long as max_tokens allows
    worst_usd: float  # every byte of a prompt a token and every retry billed: what the spend cap reserves


def parts_directory(out: Path) -> Path:
    """Where the answers of a table are kept as they come."""
    return out.with_name(out.name + ".parts")


def collect(
    pool: Pool,
    queries: Sequence[Query],
    out: Path,
    encoder: TextEncoder,
    *,
    grader: str = "exact",
    judge: str | None = None,
    experts: Sequence[str] | None = None,
    max_usd: float | None = None,
    show_progress: bool = False,
) -> Collected:
    """Asks what is not stored yet, grades and embeds everything, and writes the table.

    Args:
        grader: a name in `GRADERS`, or "judge" for the pool's expert `judge`.
        experts: names to ask and to write, in this order; all where None. Stored answers of others stay stored.
        max_usd: the most that this run may spend.

    Raises:
        InputError: something given cannot be used, or another process collects into `out`.
        KeyboardInterrupt: after the calls under way came back and were stored.
    """
    specs = pool.select(experts)
    _check(queries, out, grader, judge)
    spend_cap = SpendCap(max_usd)
    judges = pool.select([judge]) if judge else []
    asked = make_experts(pool, [spec.name for spec in specs], spend_cap)
    judging = make_experts(pool, [spec.name for spec in judges], spend_cap)
    with open_store(parts_directory(out)) as store:
        keys = {spec.name: keys_for(spec) for spec in (*specs, *judges)}
        stored = [StoredExpert(expert, keys[expert.name], store) for expert in asked]
        queues = [
            queue_for(e, spec, _missing(keys[e.name], queries, store.found))
            for e, spec in zip(stored, specs, strict=True)
        ]
        ask_all(queues, show_progress)
        rows = [Row(e.name, q, store.found[k]) for e in asked for q in queries if (k := keys[e.name](q)) in store.found]
        judge_expert = StoredExpert(judging[0], keys[judging[0].name], store) if judging else None
        graded = _grade(rows, grader, judge_expert)
        table = _write(specs, queries, graded, encoder, out, f"graded by {grader}")
    missing = len(specs) * len(queries) - len(graded)
    return Collected(queues, table, _mean_scores(graded), missing, spend_cap.spent_usd)


def estimate(pool: Pool, queries: Sequence[Query], out: Path, experts: Sequence[str] | None = None) -> list[Estimate]:
    """What `collect` would ask and pay, without asking or writing anything."""
    found = set(successes(read_parts(parts_directory(out))))
    return [_estimate(spec, queries, found) for spec in pool.select(experts)]


def _estimate(spec: ExpertSpec, queries: Sequence[Query], found: set[str]) -> Estimate:
    missing = _missing(keys_for(spec), queries, found)
    tokens = [math.ceil(spec.most_prompt_tokens(query) / BYTES_PER_TOKEN) for query in missing]
    return Estimate(
        expert=spec.name,
        stored=len(queries) - len(missing),
        to_ask=len(missing),
        prompt_tokens=sum(tokens),
        usd=sum(spec.price.worst_usd(n, spec.max_tokens) for n in tokens),
        worst_usd=sum(spec.worst_usd(query) for query in missing) * spec.attempts,
    )


def _check(queries: Sequence[Query], out: Path, grader: str, judge: str | None) -> None:
    """Refuses before anything is asked what could not be written or graded afterwards."""
    if grader not in (*GRADERS, "judge"):
        raise InputError(f"--grader: no grader named {grader!r}; there are {', '.join([*GRADERS, 'judge'])}")
    if (grader == "judge") != (judge is not None):
        raise InputError("--grader judge and --judge EXPERT go together")
    if not queries:
        raise InputError("--queries: there are none")
    if out.exists() and not parts_directory(out).is_dir():
        raise InputError(f"{out}: exists and was not collected here (no {parts_directory(out).name} beside it)")
    if out.exists() and not (out / "table.json").is_file():
        raise InputError(f"{out}: exists and is no table directory")
    seen: set[str] = set()
    for query in queries:
        if query.query_id in seen:
            raise InputError(f"--queries: query_id {query.query_id!r} is there twice")
        if grader != "judge" and not query.reference:
            raise InputError(f"--queries: query {query.query_id!r} has no reference to grade against")
        if grader not in ("judge", "math") or (grader == "math" and not seen):  # one formula takes a while
            GRADERS[grader]("", query)  # says so where the reference is of the wrong kind
        seen.add(query.query_id)


def _missing(key: Callable[[Query], str], queries: Sequence[Query], found: Collection[str]) -> list[Query]:
    """The queries without a stored answer; of those with equal prompts one."""
    return list({k: query for query in queries if (k := key(query)) not in found}.values())


def queue_for(expert: Expert, spec: ExpertSpec, queries: Sequence[Query]) -> ExpertQueue:
    """The work of asking an expert of a pool these queries."""
    if isinstance(spec, OpenAISpec):
        return make_queue(expert, queries, spec.concurrency, remote=True)
    return make_queue(expert, queries, getattr(spec, "batch_size", 1), remote=False)


def _grade(rows: Sequence[Row], grader: str, judge_expert: Expert | None) -> list[Row]:
    """The rows with their grades, without those that a judge could not grade; after a batch of these it is given up."""
    if judge_expert is None:
        return [replace(row, grade=GRADERS[grader](row.answer.text, row.query)) for row in rows]
    graded = []
    for start in range(0, len(rows), JUDGE_BATCH):
        part = rows[start : start + JUDGE_BATCH]
        grades = judge_batch(judge_expert, [row.answer.text for row in part], [row.query for row in part])
        graded += [replace(row, grade=g) for row, g in zip(part, grades, strict=True) if g.error is None]
        if all(grade.error for grade in grades):
            break
    return graded


def _mean_scores(graded: Sequence[Row]) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for row in graded:
        scores.setdefault(row.expert, []).append(row.grade.score)
    return {name: sum(values) / len(values) for name, values in scores.items()}


def _write(
    specs: Sequence[ExpertSpec],
    queries: Sequence[Query],
    graded: Sequence[Row],
    encoder: TextEncoder,
    out: Path,
    remark: str,
) -> ExpertTable | None:
    """Writes the table and returns it without its incomplete queries; None where no query is complete."""
    answered = Counter(row.query.query_id for row in graded)
    if len(specs) not in answered.values():
        return None
    embeddings = np.asarray(encoder.encode([query.text for query in queries])).astype(np.float16)
    info = TableInfo(
        format=1,
        name=out.name,
        description=f"{len(queries)} queries asked of {len(specs)} experts, {remark}",
        encoder=encoder.info,
        experts=tuple(expert_info(spec) for spec in specs),
    )
    asked, answered_rows = query_rows(queries), answer_rows(graded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # queries that lack an answer are counted in the report
        table = ExpertTable.from_arrow(info, asked, answered_rows, embeddings, source=out)
    write_table(out, info, asked, answered_rows, embeddings, checked=True)
    return table


def expert_info(spec: ExpertSpec) -> ExpertInfo:
    """An expert as `table.json` describes it."""
    fields = {
        "name": spec.name,
        "usd_per_mtok_in": spec.usd_per_mtok_in,
        "usd_per_mtok_out": spec.usd_per_mtok_out,
        "usd_per_second": spec.usd_per_second,
        "parameters_b": spec.parameters_b,
        "model": Path(spec.model).name if Path(spec.model).is_absolute() else spec.model,
    }
    return ExpertInfo.model_validate({name: value for name, value in fields.items() if value is not None})


def query_rows(queries: Sequence[Query]) -> pa.Table:
    """`queries.parquet`."""
    names = ("query_id", "text", "domain", "reference", "split")
    return pa.table({name: pa.array([getattr(query, name) for query in queries], pa.string()) for name in names})


def answer_rows(graded: Sequence[Row]) -> pa.Table:
    """`answers.parquet`."""
    columns = {
        "query_id": (pa.string(), [row.query.query_id for row in graded]),
        "expert": (pa.string(), [row.expert for row in graded]),
        "score": (pa.float64(), [row.grade.score for row in graded]),
        "cost_usd": (pa.float64(), [row.answer.cost_usd for row in graded]),
        "prompt_tokens": (pa.int64(), [row.answer.prompt_tokens for row in graded]),
        "completion_tokens": (pa.int64(), [row.answer.completion_tokens for row in graded]),
        "answer": (pa.string(), [row.grade.answer for row in graded]),
        "output": (pa.string(), [row.answer.text for row in graded]),
        "latency_s": (pa.float64(), [row.answer.latency_s for row in graded]),
    }
    return pa.table({name: pa.array(values, dtype) for name, (dtype, values) in columns.items()})


@dataclass(frozen=True)
class Config:
    """Asks every expert of a pool every query and writes the table directory. Run it again to go on."""

    pool: Path
    """pool.yaml"""
    queries: str
    """JSONL or parquet file, or the name of a Hugging Face dataset"""
    out: Path
    """the table directory; answers are kept beside it, in OUT.parts"""
    grader: str = "exact"
    """multiple-choice, number, exact, math or judge"""
    judge: str | None = None
    """the pool's expert that judges, with --grader judge"""
    experts: str | None = None
    """names to ask and write, with commas between them; all by default"""
    split: str | None = None
    """of a file, only the rows of this split; of a dataset, the split to load"""
    limit: int | None = None
    """only the first queries"""
    max_usd: float | None = None
    """the most that this run may spend"""
    dry_run: bool = False
    """only estimate the price"""
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """sentence-transformers or transformers model that embeds the queries"""
    device: str = "cpu"
    """where the encoder runs"""
    threads: int = 1
    """torch threads of the encoder and of local models on the CPU"""


def run(config: Config) -> int:
    """Does what the command line says and returns the exit code."""
    from experts.data.queries import load_queries
    from experts.encoder import Encoder

    if config.max_usd is not None and not config.max_usd >= 0:
        raise InputError(f"--max-usd: {config.max_usd} is not an amount >= 0")
    torch.set_num_threads(max(1, config.threads))
    pool = load_pool(config.pool)
    names = config.experts.split(",") if config.experts is not None else None
    pool.select(names)
    queries = load_queries(config.queries, limit=config.limit, split=config.split)
    out = config.out.resolve()
    _check(queries, out, config.grader, config.judge)
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
        f"An estimate; nothing was asked. {BYTES_PER_TOKEN} bytes a prompt token, answers as long as max_tokens allows:"
    )
    for one in estimates:
        print(
            f"{one.expert}: {one.to_ask} to ask ({one.stored} stored), {one.prompt_tokens:,} prompt tokens, "
            f"${one.usd:.4f}, never more than ${one.worst_usd:.4f}"
        )
    usd, worst_usd = sum(one.usd for one in estimates), sum(one.worst_usd for one in estimates)
    print(f"all: ${usd:.4f}, never more than ${worst_usd:.4f}")


def _report(collected: Collected, out: Path) -> int:
    """Prints what came of it and returns the exit code."""
    for queue in collected.queues:
        score = collected.mean_scores.get(queue.expert.name)
        print(f"{queue.expert.name}: {queue.status()}" + (f", mean score {score:.3f}" if score is not None else ""))
        if queue.failed:
            print(f"{queue.expert.name}: last error: {queue.error}")
    again = "; run again to ask for them" if collected.missing else ""
    print(f"spent ${collected.spent_usd:.6f}, {collected.missing} answers missing{again}")
    print(collected.table or f"{out}: no table yet, as no query has an answer of every expert")
    return 1 if collected.missing else 0


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    try:
        code = run(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; the answers so far are kept, run again to go on", file=sys.stderr)
        code = 130
    sys.exit(code)
