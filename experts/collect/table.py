"""Builds a table directory from graded answers."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from experts.grading import Grade
from experts.specs import ExpertSpec
from experts.types import Answer, Query, TextEncoder
from leeroo_env.table import ExpertInfo, ExpertTable, TableInfo, write_table
from leeroo_env.table.duplicates import kept_together


@dataclass(frozen=True)
class GradedAnswer:
    """One answer with its grade."""

    expert: str
    query: Query
    answer: Answer
    grade: Grade


def write_answers(
    specs: Sequence[ExpertSpec],
    queries: Sequence[Query],
    graded: Sequence[GradedAnswer],
    encoder: TextEncoder,
    out: Path,
    grader: str,
) -> ExpertTable | None:
    """Writes the table directory and returns the table, or None if no query has an answer of every expert."""
    answered = Counter(row.query.query_id for row in graded)
    if len(specs) not in answered.values():
        return None
    embeddings = np.asarray(encoder.encode([query.text for query in queries])).astype(np.float16)
    info = TableInfo(
        format=1,
        name=out.name,
        description=f"{len(queries)} queries asked of {len(specs)} experts, graded by {grader}",
        encoder=encoder.info,
        experts=tuple(expert_info(spec) for spec in specs),
    )
    query_table, answer_table = kept_together(query_rows(queries), embeddings), answer_rows(graded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report counts the queries that lack an answer
        table = ExpertTable.from_arrow(info, query_table, answer_table, embeddings, source=out)
    write_table(out, info, query_table, answer_table, embeddings, checked=True)
    return table


def expert_info(spec: ExpertSpec) -> ExpertInfo:
    """The description of an expert in table.json."""
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


def answer_rows(graded: Sequence[GradedAnswer]) -> pa.Table:
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
        "finish_reason": (pa.string(), [row.answer.finish_reason for row in graded]),
        "reasoning_tokens": (pa.int64(), [row.answer.reasoning_tokens for row in graded]),
    }
    evidence = {
        "evidence_logprob": [row.answer.logprob for row in graded],
        "evidence_verbal": [row.answer.confidence for row in graded],
    }
    columns |= {name: (pa.float64(), of) for name, of in evidence.items() if any(value is not None for value in of)}
    return pa.table({name: pa.array(values, dtype) for name, (dtype, values) in columns.items()})
