"""Checks the content of a table directory: every error names the file, the column and the first offending row.

N queries, K experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leeroo_env.errors import InputError
from leeroo_env.table.schema import (
    EVIDENCE,
    MAX_COST_USD,
    NOT_A_COST,
    QUERY_COLUMNS,
    SPLITS,
    TableInfo,
    hash_split,
    tenth,
)


def check_content(
    info: TableInfo, queries: pa.Table, answers: pa.Table, embeddings: np.ndarray, source: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Checks all of a table's content and arranges it by query and expert.

    Args:
        info: the content of `table.json`.
        queries: those of `queries.parquet`, with the columns of `leeroo_env.table.schema`.
        answers: those of `answers.parquet`, likewise.
        embeddings: [N, D].
        source: the directory named in messages.

    Returns:
        split [N] int8; scores and costs [N, K] float32, NaN where missing; answer_ids [N, K] int16.
    """
    file = source / "queries.parquet"
    if len(queries) == 0:
        raise InputError(f"{file}: has no rows")
    for name in QUERY_COLUMNS:
        require(pc.is_null(queries[name]), file, name, queries[name], "is not allowed here")
    _check_unique(queries["query_id"], file, "query_id")
    _check_embeddings(embeddings, len(queries), source / "embeddings.npy")
    _check_evidence(answers, source / "answers.parquet")
    names = pa.array([expert.name for expert in info.experts])
    dense = _dense(answers, queries["query_id"].combine_chunks(), names, source / "answers.parquet")
    return _splits(queries, source), *dense


def validate(column: pa.ChunkedArray, where: str) -> None:
    """Checks all of a column, its offsets and UTF-8 too. Raises InputError, which begins with `where`."""
    try:
        column.validate(full=True)
    except (pa.ArrowException, ValueError) as error:
        row = _row_of_bad_text(column) if "UTF8" in str(error) else None
        problem = str(error).splitlines()[0] if row is None else f"row {row}: is not UTF-8"
        raise InputError(f"{where}: damaged: {problem}") from None


def _row_of_bad_text(column: pa.ChunkedArray) -> int | None:
    for row, value in enumerate(column):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return row
    return None


def with_columns(
    table: pa.Table, path: Path, required: dict[str, pa.DataType], nullable: dict[str, pa.DataType]
) -> pa.Table:
    """`table` with the `required` and `nullable` columns cast to their types; missing nullable ones become nulls.

    Raises:
        InputError: a column is missing, appears twice or has another type; `path` is the file named in the message.
    """
    for name, dtype in {**required, **nullable}.items():
        if table.column_names.count(name) > 1:
            raise InputError(f"{path}: column {name} appears twice")
        if name not in table.column_names:
            if name in required:
                raise InputError(f"{path}: column {name} is missing")
            table = table.append_column(name, pa.nulls(len(table), dtype))
        column = table[name]
        if column.type != dtype:
            try:
                column = column.cast(dtype)
            except pa.ArrowException:
                raise InputError(f"{path}: column {name} holds {column.type}, not {dtype}") from None
            table = table.set_column(table.column_names.index(name), name, column)
    return table


def check_mapped_queries(queries: pa.Table, n: int, file: Path) -> None:
    """Checks the N = `n` rows of a mapped table's queries; their text is not read. Raises InputError."""
    if len(queries) != n:
        raise InputError(f"{file}: {len(queries)} rows, but scores.npy has {n}")
    for name in QUERY_COLUMNS:
        if queries[name].null_count:
            require(pc.is_null(queries[name]), file, name, queries[name], "is not allowed here")


def _splits(queries: pa.Table, source: Path) -> np.ndarray:
    """The split of every query, [N] int8."""
    ids, given = queries["query_id"].to_pylist(), queries["split"].to_pylist()
    for row, value in enumerate(given):
        if value is not None and value not in SPLITS:
            raise InputError(
                f"{source / 'queries.parquet'}: column split, row {row}: {value!r} is not train, val, test or null"
            )
    names = [hash_split(i) if value is None else value for i, value in zip(ids, given, strict=True)]
    if "val" not in names and "train" in names:
        names = ["val" if s == "train" and tenth(i) == 3 else s for i, s in zip(ids, names, strict=True)]
    return np.array([SPLITS.index(s) for s in names], dtype=np.int8)


def _check_unique(ids: pa.ChunkedArray, file: Path, column: str) -> None:
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    repeated = np.ones(len(codes), dtype=bool)
    repeated[np.unique(codes, return_index=True)[1]] = False
    require(repeated, file, column, ids, "appears twice")


def _check_evidence(answers: pa.Table, file: Path) -> None:
    """Checks that the columns `evidence_NAME` hold finite numbers or nulls."""
    for name in answers.column_names:
        if not name.startswith(EVIDENCE):
            continue
        if answers.column_names.count(name) > 1:
            raise InputError(f"{file}: column {name} appears twice")
        column = answers[name]
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
            raise InputError(f"{file}: column {name} holds {column.type}, not numbers")
        numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        require(np.isinf(numbers), file, name, column, "is not a finite number")


def _check_embeddings(embeddings: np.ndarray, n: int, file: Path) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] == 0 or embeddings.dtype not in (np.float16, np.float32):
        raise InputError(f"{file}: holds {embeddings.dtype} {list(embeddings.shape)}, not float16 or float32 [N, D]")
    if len(embeddings) != n:
        raise InputError(f"{file}: {len(embeddings)} rows, but queries.parquet has {n}")
    row = first_true(~np.isfinite(embeddings).all(axis=1))
    if row is not None:
        raise InputError(f"{file}: row {row} holds NaN or infinity")


def _dense(answers: pa.Table, ids: pa.Array, names: pa.Array, file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checks the answers, one row each, and arranges them by query and expert.

    Returns scores and costs [N, K] float32, NaN where there is no row; answer_ids [N, K] int16.
    """
    row = pc.index_in(answers["query_id"], ids)
    column = pc.index_in(answers["expert"], names)
    require(pc.is_null(row), file, "query_id", answers["query_id"], "is not in queries.parquet")
    require(pc.is_null(column), file, "expert", answers["expert"], "is not in table.json")
    cell = np.asarray(row, dtype=np.int64) * len(names) + np.asarray(column, dtype=np.int64)
    repeated = np.ones(len(cell), dtype=bool)
    repeated[np.unique(cell, return_index=True)[1]] = False
    require(repeated, file, "query_id, expert", answers["query_id"], "has a second answer of the same expert")
    score = answers["score"].to_numpy(zero_copy_only=False)
    cost = answers["cost_usd"].to_numpy(zero_copy_only=False)
    require(~((score >= 0) & (score <= 1)), file, "score", answers["score"], "is not in [0, 1]")
    require(~((cost >= 0) & (cost <= MAX_COST_USD)), file, "cost_usd", answers["cost_usd"], NOT_A_COST)
    dense = np.full((2, len(ids) * len(names)), np.nan, dtype=np.float32)
    dense[0, cell], dense[1, cell] = score, cost
    scores, costs = dense.reshape(2, len(ids), len(names))
    codes = np.full(scores.size, -1, dtype=np.int32)
    codes[cell] = _answer_codes(answers, file)
    return scores, costs, first_alike(codes.reshape(scores.shape))


def _answer_codes(answers: pa.Table, file: Path) -> np.ndarray:
    """A number for each distinct string of the column `answer`; -1 for null, and for all rows without the column."""
    count = answers.column_names.count("answer")
    if count == 0:
        return np.full(len(answers), -1, dtype=np.int32)
    if count > 1:
        raise InputError(f"{file}: column answer appears twice")
    column = answers["answer"]
    held = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(held) or pa.types.is_large_string(held) or pa.types.is_null(held)):
        raise InputError(f"{file}: column answer holds {held}, not string")
    return column.cast(pa.string()).combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()


def first_alike(codes: np.ndarray) -> np.ndarray:
    """For each cell [N, K], the first column of its row with the same code, int16; -1 where the code is negative."""
    first = np.full(codes.shape, -1, dtype=np.int16)
    for column in range(codes.shape[1] - 1, -1, -1):
        first[codes == codes[:, column, None]] = column
    first[codes < 0] = -1
    return first


def first_true(bad: pa.ChunkedArray | np.ndarray) -> int | None:
    """The index of the first True, None if there is none."""
    bad = np.asarray(bad)
    return int(bad.argmax()) if bad.any() else None


def require(bad: Any, file: Path, column: str, values: Any, problem: str) -> None:
    """Raises InputError if any of `bad` [n] is true; it names file, column, the first such row and its value."""
    row = first_true(bad)
    if row is not None:
        value = values[row]
        value = value.as_py() if isinstance(value, pa.Scalar) else value
        raise InputError(f"{file}: column {column}, row {row}: {value!r} {problem}")
