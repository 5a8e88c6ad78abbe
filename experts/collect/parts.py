"""Reads and writes parts: parquet files of experts' answers, in which one bad row never costs its neighbours."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from functools import reduce
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from experts.backends.reply import clean_text
from experts.types import EMPTY, Answer, Query
from leeroo_env.errors import InputError
from leeroo_env.files import write_atomically

SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "query_id": pa.string(),
        "expert": pa.string(),
        "output": pa.string(),
        "prompt_tokens": pa.int64(),
        "completion_tokens": pa.int64(),
        "cost_usd": pa.float64(),
        "latency_s": pa.float64(),
        "error": pa.string(),
        "time": pa.timestamp("us", tz="UTC"),
        "finish_reason": pa.string(),
        "reasoning": pa.string(),
        "lost_usd": pa.float64(),
        "cached_tokens": pa.int64(),
        "cache_write_tokens": pa.int64(),
        "reasoning_tokens": pa.int64(),
        "usage": pa.string(),
        "logprob": pa.float64(),
        "confidence": pa.float64(),
        "label": pa.string(),  # what the call was made for, as the program says that made it
    }
)
ADDED = {  # columns that the first parts did not have, and what their nulls mean
    "finish_reason": None,
    "reasoning": "",
    "lost_usd": 0.0,
    "cached_tokens": 0,
    "cache_write_tokens": 0,
    "reasoning_tokens": 0,
    "usage": None,
    "logprob": None,
    "confidence": None,
    "label": "",
}
COLUMN_OF = {field.name: field.name for field in fields(Answer)} | {"text": "output"}
TEXTS = [name for name, dtype in zip(SCHEMA.names, SCHEMA.types, strict=True) if dtype == pa.string()]
COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
MOST = {  # of one call; more is an error of whoever wrote it
    **dict.fromkeys(COUNTS, 1_000_000_000),
    "cost_usd": 100_000.0,
    "lost_usd": 100_000.0,
    "latency_s": 10_000_000.0,
}

Row = tuple[str, Query, Answer]  # the key of an answer, its query, and itself


def parts_directory(out: Path) -> Path:
    """The directory of the stored answers of a table. Raises InputError where the table's has no name, as /."""
    if not out.name:
        raise InputError(f"{out}: cannot be the directory of a table; name one in it")
    return out.with_name(out.name + ".parts")


def part_files(directory: Path) -> list[Path]:
    """The parts in a directory, oldest first."""
    return sorted((p for p in directory.glob("*.parquet") if p.stem.isdecimal()), key=lambda part: int(part.stem))


def read_parts(directory: Path) -> pa.Table:
    """All usable rows of all parts, oldest first, including failed calls; no rows if there is no directory.

    Rows that cannot be used (negative, absurd or missing numbers, no text) are left out with one warning. Answers
    without a text in parts that do not say why they are empty are failed calls.

    Raises:
        InputError: a part is not a parquet file, or lacks a column.
    """
    tables = [SCHEMA.empty_table()]
    for part in part_files(directory):
        try:
            tables.append(_with_all_columns(pq.ParquetFile(part).read()))
        except (pa.ArrowException, KeyError, OSError, ValueError) as error:
            raise InputError(f"{part}: not a readable part: {str(error).splitlines()[0]}") from None
    table = pa.concat_tables(tables)
    usable = table.filter(_usable(table))
    if bad := len(table) - len(usable):
        warnings.warn(
            f"{directory}: {bad} stored answer{'s' if bad > 1 else ''} cannot be used (a text is missing, or a number "
            "is missing, negative or absurd); skipped, and asked again",
            stacklevel=2,
        )
    return _old_empty_as_failed(usable)


def stored_answers(table: pa.Table) -> Iterator[tuple[str, Answer]]:
    """Key and answer of each row."""
    columns = {field: table[column].to_pylist() for field, column in COLUMN_OF.items()}
    for key, *values in zip(table["key"].to_pylist(), *columns.values(), strict=True):
        yield key, Answer(**dict(zip(columns, values, strict=True)))


def storable(answer: Answer) -> Answer:
    """The answer without half surrogates, or, where a number or a text is none, a failed call that says so."""
    if fault := _fault(answer):
        known = [usd for usd in (answer.cost_usd, answer.lost_usd) if _is_amount(usd, MOST["lost_usd"])]
        return Answer("", 0, 0, 0.0, 0.0, error=f"unusable reply: {fault}", lost_usd=float(sum(known)))
    return replace(
        answer,
        text=clean_text(answer.text),
        reasoning=clean_text(answer.reasoning),
        error=answer.error and clean_text(answer.error),
        finish_reason=answer.finish_reason and clean_text(answer.finish_reason),
    )


def part_of(expert: str, rows: Sequence[Row], label: str) -> pa.Table:
    """The part that holds rows of storable answers of one expert."""
    now = datetime.now(timezone.utc)
    values = [
        {
            **{column: getattr(answer, field) for field, column in COLUMN_OF.items()},
            "key": key,
            "query_id": clean_text(query.query_id),
            "expert": clean_text(expert),
            "time": now,
            "label": label,
        }
        for key, query, answer in rows
    ]
    return pa.Table.from_pylist(values, schema=SCHEMA)


def write_part(table: pa.Table, path: Path) -> None:
    """Writes a part that is complete and on disk when this returns. Raises InputError where it cannot be written."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            pq.write_table(table, stream)
            stream.flush()
            os.fsync(stream.fileno())

    try:
        write_atomically(path, write)
        _sync_directory(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _with_all_columns(table: pa.Table) -> pa.Table:
    """The columns of `SCHEMA`; those that are missing in the first parts are added. Raises KeyError for others."""
    columns = []
    for name, dtype in zip(SCHEMA.names, SCHEMA.types, strict=True):
        if name not in table.column_names and name in ADDED:
            column = pa.chunked_array([pa.nulls(len(table), dtype)])
        else:
            column = table[name].cast(dtype)
        columns.append(column if ADDED.get(name) is None else column.fill_null(ADDED[name]))
    return pa.table(columns, schema=SCHEMA)


def _usable(table: pa.Table) -> pa.ChunkedArray:
    """Which rows can be used, [rows] bool."""
    checks = [_is_text(table[name]) for name in TEXTS]
    checks += [pc.is_valid(table[name]) for name in ("key", "query_id", "expert")]
    checks.append(pc.or_(pc.is_valid(table["output"]), pc.is_valid(table["error"])))
    for name, most in MOST.items():  # a comparison with NaN is false
        checks.append(pc.and_(pc.greater_equal(table[name], 0), pc.less_equal(table[name], most)))
    return reduce(pc.and_, (check.fill_null(False) for check in checks))


def _is_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which strings are UTF-8, [rows] bool; null is."""
    try:
        column.validate(full=True)
        return pa.chunked_array([pa.repeat(True, len(column))])
    except pa.ArrowInvalid:
        return pa.chunked_array([[_decodes(value) for value in column.cast(pa.binary()).to_pylist()]])


def _decodes(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _old_empty_as_failed(table: pa.Table) -> pa.Table:
    """Empty answers of the first parts, which have no `usage`, become failed calls, and their cost becomes lost."""
    is_old, no_text = pc.is_null(table["usage"]), pc.equal(pc.utf8_trim_whitespace(table["output"].fill_null("")), "")
    empty = pc.and_(pc.and_(is_old, no_text), pc.is_null(table["error"]))
    changed = {
        "error": pc.if_else(empty, f"{EMPTY} (finish_reason not given)", table["error"]),
        "lost_usd": pc.if_else(empty, table["cost_usd"], table["lost_usd"]),
        "cost_usd": pc.if_else(empty, 0.0, table["cost_usd"]),
        "usage": table["usage"].fill_null("reported"),
    }
    return pa.table([changed.get(name, table[name]) for name in SCHEMA.names], schema=SCHEMA)


def _fault(answer: Answer) -> str | None:
    """What keeps an answer from being stored; None if nothing does."""
    for name, value in asdict(answer).items():
        if name in MOST:
            kind = Integral if name in COUNTS else Real
            if not (isinstance(value, kind) and _is_amount(value, MOST[name])):
                return f"{name} is {value!r:.40}"
        elif name == "logprob":
            if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
                return f"logprob is {value!r:.40}"
        elif name == "confidence":
            if value is not None and not _is_amount(value, 1.0):
                return f"confidence is {value!r:.40}"
        elif not isinstance(value, str) and not (value is None and name in ("error", "finish_reason")):
            return f"{name} is {value!r:.40}"
    return None


def _is_amount(value: Any, most: float) -> bool:
    return isinstance(value, Real) and bool(0 <= value <= most)  # type: ignore[operator]


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
