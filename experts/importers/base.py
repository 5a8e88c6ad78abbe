"""Writes imported answers as a table directory."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from experts.collect.table import query_rows
from experts.data.readers import read_csv, read_parquet, shown
from experts.encoder import DEFAULT_MODEL, Encoder
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.table import ANSWER_COLUMNS, ExpertInfo, ExpertTable, TableInfo, read_embeddings, write_table
from leeroo_env.table.duplicates import kept_together

ANSWER_TYPES = {**ANSWER_COLUMNS, "answer": pa.string(), "output": pa.string(), "latency_s": pa.float64()}
COLUMNAR = (".csv", ".parquet")


@dataclass(frozen=True)
class Output:
    """Where the table is written and how its queries are embedded."""

    out: Path
    """The table directory to write; an older table there is replaced."""
    name: str | None = None
    """The table's name; by default the directory's name."""
    embeddings: Path | None = None
    """A .npy file [N, D], float16 or float32, row i for query i of the source (mmlu-pro: in ascending question_id)."""
    encoder: str | None = None
    """The model that embeds the queries (default: all-MiniLM-L6-v2), or that made the file of embeddings."""
    max_tokens: int | None = None
    """Longer queries are truncated for the encoder; None: the encoder's own limit."""
    device: str = "cpu"
    """Where the encoder runs."""


@dataclass
class Imported:
    """Queries by id, columns of answers, and counts of what was left out."""

    queries: dict[str, Query] = field(default_factory=dict)
    answers: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in ANSWER_TYPES})
    left_out: dict[str, int] = field(default_factory=dict)

    def add(self, query: Query, expert: str, score: float, cost_usd: float, **more: Any) -> None:
        row = {"query_id": query.query_id, "expert": expert, "score": score, "cost_usd": cost_usd, **more}
        for name, column in self.answers.items():
            column.append(row.get(name))

    def leave_out(self, what: str, count: int = 1) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + count


def write_imported(
    output: Output, description: str, experts: Sequence[ExpertInfo], collected: Imported, order: Sequence[str]
) -> ExpertTable:
    """Embeds the queries in the given order, checks and writes the table, and prints a one-line summary."""
    if output.out.exists() and not (output.out / "table.json").is_file():
        raise InputError(f"{output.out}: exists and is not a table directory; not replaced")
    if not collected.queries:
        raise InputError(f"{output.out}: no queries were found")
    chosen = [collected.queries[query_id] for query_id in order]
    embeddings, encoder = _embeddings(output, [query.text for query in chosen])
    queries, answers = kept_together(query_rows(chosen), embeddings), answer_columns(collected)
    info = TableInfo(
        name=output.name or output.out.name, description=description, encoder=encoder, experts=tuple(experts)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the summary counts the queries left out
        table = ExpertTable.from_arrow(info, queries, answers, embeddings, source=output.out)
    write_table(output.out, info, queries, answers, embeddings, checked=True)
    left_out = {"queries without every expert's answer": len(chosen) - len(table), **collected.left_out}
    summary = ", ".join(f"{count} {what}" for what, count in left_out.items() if count) or "nothing"
    print(f"{output.out}: {len(table)} queries, {len(experts)} experts; left out: {summary}")
    return table


def answer_columns(collected: Imported) -> pa.Table:
    """`answers.parquet`, without those optional columns that are empty."""
    optional = ("answer", "output", "latency_s")
    used = {name: column for name, column in collected.answers.items() if name not in optional or any(column)}
    return pa.table({name: pa.array(column, ANSWER_TYPES[name]) for name, column in used.items()})


def _embeddings(output: Output, texts: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """The embeddings [N, D] and their description in table.json."""
    if output.embeddings is None:
        encoder = Encoder(output.encoder or DEFAULT_MODEL, device=output.device, max_tokens=output.max_tokens)
        return encoder.encode(texts), encoder.info
    embeddings = read_embeddings(output.embeddings)
    if embeddings.ndim != 2 or len(embeddings) != len(texts) or embeddings.dtype.kind != "f":
        shape = f"{embeddings.dtype} {list(embeddings.shape)}"
        raise InputError(f"{output.embeddings}: contains {shape}, not a row for each of {len(texts)} queries")
    if not np.isfinite(embeddings).all():
        row = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0]
        raise InputError(f"{output.embeddings}: row {row} contains NaN or infinity")
    if embeddings.dtype != np.float16:
        embeddings = embeddings.astype(np.float32)
    known = {"model": output.encoder, "max_tokens": output.max_tokens}
    return embeddings, {k: v for k, v in known.items() if v is not None} | {"dim": int(embeddings.shape[1])}


def storable(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def number_in(value: Any, where: str, highest: float = math.inf) -> float:
    """A number from 0 to `highest`, as a float; raises InputError that says where it is not."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not 0 <= value <= highest:
        limits = "a number of 0 or more" if highest == math.inf else f"a number from 0 to {highest:g}"
        raise InputError(f"{where}: {shown(value)} is not {limits}")
    return float(value)


def check_tokens(tokens: Mapping[str, Any], where: str) -> None:
    """Raises InputError, which begins with `where` and the name, unless all are numbers of tokens or None."""
    for name, count in tokens.items():
        if count is not None and (type(count) is not int or count < 0):
            raise InputError(f"{where} {name}: {shown(count)} is not a number of tokens")


def read_list(file: Path, of: str) -> list[Any]:
    """The JSON list in a file; raises InputError, which says what it should be a list `of`, where there is none."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(values, list):
        raise InputError(f"{file}: is not a list of {of}")
    return values


def read_columns(file: Path) -> pa.Table:
    """A .csv or .parquet file; empty fields of a CSV file are null."""
    if file.suffix == ".parquet":
        return read_parquet(file)
    table = read_csv(file)
    columns = [pc.if_else(pc.equal(column, ""), None, column) for column in table.columns]
    return pa.table(columns, names=table.column_names)
