"""Imports any table of answers in long format, with one row per query and expert."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro

from experts.importers.base import ANSWER_TYPES, COLUMNAR, Imported, Output, read_columns, write_imported
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.table import SPLITS, ExpertInfo, ExpertTable

REQUIRED = ("query_id", "expert", "score", "cost_usd", "text")
QUERY_FIELDS = ("text", "domain", "reference", "split")
OPTIONAL = (
    "domain",
    "reference",
    "split",
    "prompt_tokens",
    "completion_tokens",
    "answer",
    "output",
    "latency_s",
)


def import_tidy(file: tyro.conf.Positional[Path], output: Output, columns: str = "") -> ExpertTable:
    """Any .parquet or .csv in long format: one row per query and expert.

    Required columns: query_id, expert, score (0 to 1), cost_usd and text. Optional: domain, reference, split,
    prompt_tokens, completion_tokens, answer, output and latency_s.

    Args:
        file: the file.
        columns: other names of these columns in the file: "query_id=item,expert=model,text=question".
    """
    names = _column_map(columns)
    table = _read(file, names)
    _check(table, file, names)
    collected = Imported()
    for number, row in enumerate(table.to_pylist()):
        query = _add_row(collected, row)
        known = collected.queries[query.query_id]
        for name in QUERY_FIELDS:
            if getattr(known, name) != getattr(query, name):
                where = f"{file}: column {names[name]}, row {number}"
                raise InputError(f"{where}: differs from an earlier row of {query.query_id!r}")
    infos = [ExpertInfo(name=name) for name in dict.fromkeys(table["expert"].to_pylist())]
    return write_imported(output, f"Imported from {file.name}", infos, collected, list(collected.queries))


def _add_row(collected: Imported, row: dict[str, Any]) -> Query:
    """Adds the answer of a row, and its query unless there is one with this id; returns the row's query."""
    query = Query(row["query_id"], row["text"], row.get("domain") or "", row.get("reference"), row.get("split"))
    collected.queries.setdefault(query.query_id, query)
    optional = {name: row[name] for name in OPTIONAL if name in row and name in ANSWER_TYPES}
    collected.add(query, row["expert"], row["score"], row["cost_usd"], **optional)
    return query


def _column_map(columns: str) -> dict[str, str]:
    """The file's name of each column."""
    names = {name: name for name in (*REQUIRED, *OPTIONAL)}
    for pair in filter(None, columns.split(",")):
        column, equals, name = pair.partition("=")
        if not equals or column.strip() not in names or not name.strip():
            raise InputError(f"--columns: {pair!r} is not COLUMN=NAME with one of {', '.join(names)}")
        names[column.strip()] = name.strip()
    return names


def _read(file: Path, names: Mapping[str, str]) -> pa.Table:
    """The required and optional columns that the file has, renamed and cast."""
    if file.suffix not in COLUMNAR:
        raise InputError(f"{file}: is neither .csv nor .parquet")
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    table = read_columns(file)
    found = {}
    for column, name in names.items():
        if name in table.column_names:
            dtype = ANSWER_TYPES.get(column, pa.string())
            values = _scores(table[name]) if column == "score" else table[name]
            found[column] = _cast(values, dtype, f"{file}: column {name}")
        elif column in REQUIRED or name != column:
            raise InputError(f"{file}: column {name} is missing; there are {', '.join(table.column_names)}")
    if len(table) == 0:
        raise InputError(f"{file}: has no rows")
    return pa.table(found)


def _scores(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """1 and 0 for truth values, also those written as text."""
    if pa.types.is_boolean(column.type):
        return column.cast(pa.float64())
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    text = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    return pc.case_when(pc.make_struct(pc.equal(text, "true"), pc.equal(text, "false")), "1", "0", column)


def _cast(column: pa.ChunkedArray, dtype: pa.DataType, where: str) -> pa.ChunkedArray:
    if pa.types.is_boolean(column.type) and dtype != pa.string() and len(column):
        raise InputError(f"{where}, row 0: {column[0].as_py()!r} is not {dtype}")
    try:
        return column.cast(dtype)
    except (pa.ArrowException, NotImplementedError):
        for row, value in enumerate(column):
            try:
                pa.array([value.as_py()], column.type).cast(dtype)
            except (pa.ArrowException, NotImplementedError):
                raise InputError(f"{where}, row {row}: {value.as_py()!r} is not {dtype}") from None
        raise


def _check(table: pa.Table, file: Path, names: Mapping[str, str]) -> None:
    """Raises InputError with the column and the first offending row."""
    for name in REQUIRED:
        _require(pc.is_null(table[name]), table[name], f"{file}: column {names[name]}", "is not allowed here")
    score, cost = table["score"].to_numpy(), table["cost_usd"].to_numpy()
    _require(~((score >= 0) & (score <= 1)), table["score"], f"{file}: column {names['score']}", "is not in [0, 1]")
    where = f"{file}: column {names['cost_usd']}"
    _require(~((cost >= 0) & np.isfinite(cost)), table["cost_usd"], where, "is not a cost in dollars >= 0")
    if "split" in table.column_names:
        bad = pc.invert(pc.is_in(table["split"], pa.array([*SPLITS, None], pa.string())))
        _require(bad, table["split"], f"{file}: column {names['split']}", f"is not one of {', '.join(SPLITS)}")
    pairs: set[tuple[str, str]] = set()
    for row, pair in enumerate(zip(table["query_id"].to_pylist(), table["expert"].to_pylist(), strict=True)):
        if pair in pairs:
            where = f"{file}: column {names['query_id']}, row {row}"
            raise InputError(f"{where}: a second answer of {pair[1]!r} to {pair[0]!r}")
        pairs.add(pair)


def _require(bad: Any, values: pa.ChunkedArray, where: str, problem: str) -> None:
    rows = np.flatnonzero(np.asarray(bad))
    if len(rows):
        raise InputError(f"{where}, row {rows[0]}: {values[int(rows[0])].as_py()!r} {problem}")
