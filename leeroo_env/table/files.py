"""Reads and writes table directories."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leeroo_env.errors import InputError
from leeroo_env.files import new_directory, read_model
from leeroo_env.manifest import check_files, missing_manifest
from leeroo_env.table import mapped
from leeroo_env.table.checks import check_content, check_mapped_queries, validate, with_columns
from leeroo_env.table.mapped import read_npy
from leeroo_env.table.schema import NULLABLE_QUERY_COLUMNS, QUERY_COLUMNS, TableInfo


def write_table(
    path: str | os.PathLike,
    info: TableInfo,
    queries: pa.Table,
    answers: pa.Table,
    embeddings: np.ndarray,
    *,
    checked: bool = False,
) -> None:
    """Checks and writes a table directory, whole or not at all; an older table at `path` is replaced.

    Unlike `ExpertTable.save` it keeps queries that some expert has not answered: they are usable without that expert.

    Args:
        path: the directory.
        info: the content of `table.json`.
        queries: query_id, text, domain, reference, split, and any further columns.
        answers: query_id, expert, score, cost_usd, prompt_tokens, completion_tokens, and any further columns.
        embeddings: [N, D] float16 or float32, a row for each of `queries`.
        checked: whether the content is that of an `ExpertTable`, which has been checked.

    Raises:
        InputError: the content breaks the format, `path` cannot be written, or is not a table.
    """
    if not checked:
        check_content(info, queries, answers, embeddings, Path(path))
    with _new_table(Path(path), info) as directory:
        pq.write_table(queries, directory / "queries.parquet")
        pq.write_table(answers, directory / "answers.parquet")
        np.save(directory / "embeddings.npy", embeddings)


def write_mapped(
    path: str | os.PathLike,
    info: TableInfo,
    blocks: Iterable[Mapping[str, np.ndarray]],
    queries: pa.Table | None = None,
) -> None:
    """Checks and writes the mapped form of a table, whole or not at all; an older table at `path` is replaced.

    Args:
        path: the directory.
        info: the content of `table.json`.
        blocks: the rows in blocks that fit into memory; of n rows each scores, costs_usd [n, K], embeddings [n, D],
            split [n] and, in all blocks or none, answer_ids [n, K], of the types that `leeroo_env.table.mapped` lists.
        queries: query_id, text, domain and any further columns of all N rows; None: they are unknown.

    Raises:
        InputError: the content breaks the format, `path` cannot be written, or is not a table.
    """
    with _new_table(Path(path), info) as directory:
        n = mapped.write_arrays(directory, blocks, len(info.experts))
        if queries is not None:
            queries = with_columns(queries, Path(path) / "queries.arrow", QUERY_COLUMNS, NULLABLE_QUERY_COLUMNS)
            check_mapped_queries(queries, n, Path(path) / "queries.arrow")
            mapped.write_queries(directory, queries)


@contextmanager
def _new_table(path: Path, info: TableInfo) -> Iterator[Path]:
    """A new directory with `table.json` to write the rest of a table into; it replaces `path` when the block ends.

    Raises:
        InputError: `path` cannot be written, or is not a table.
    """
    if path.exists() and not (path / "table.json").is_file():
        raise InputError(f"{path}: exists and is no table directory; not replaced")
    try:
        with new_directory(path) as directory:
            content = {**info.model_dump(exclude_none=True), "manifest": True}
            (directory / "table.json").write_text(json.dumps(content, indent=1) + "\n")
            yield directory
    except OSError as error:
        raise InputError(f"{path}: cannot write the table: {error.strerror or error}") from error


def check_table(directory: Path, verify: bool) -> TableInfo:
    """Checks the files of a table against its manifest, where there is one; returns the content of `table.json`.

    Args:
        directory: of the table.
        verify: whether the large files of a mapped table are read and hashed, too; their sizes are checked anyway.

    Raises:
        InputError: a file is missing, or is not what was written; the manifest is missing although there was one.
    """
    if mapped.is_mapped(directory):
        names = [name for name in mapped.FILES if (directory / name).exists()]
        limit = None if verify else mapped.HASHED_BYTES
    else:
        names, limit = ["queries.parquet", "answers.parquet", "embeddings.npy"], None
    known = check_files(directory, ["table.json", *names], limit)
    info = read_info(directory / "table.json")
    if info.manifest and not known:
        raise missing_manifest(directory)
    return info.model_copy(update={"manifest": False})


def read_info(path: Path) -> TableInfo:
    """The content of `table.json`. Raises InputError, which names the first wrong field."""
    info = read_model(path, TableInfo)
    names = [expert.name for expert in info.experts]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"{path}: experts.{i}.name: {name!r} appears twice")
    return info


def read_parquet(path: Path) -> pa.Table:
    """All columns of a parquet file. Raises InputError where it is missing or broken."""
    if not path.is_file():
        raise InputError(f"{path}: missing")
    try:
        table = pq.ParquetFile(path).read()  # read_table would import half of pandas
        names = table.column_names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None
    for name, column in zip(names, table.columns, strict=True):
        validate(column, f"{path}: column {name}")
    return table


def read_embeddings(path: Path) -> np.ndarray:
    """The array of a .npy file, in this machine's byte order. Raises InputError; nothing is unpickled."""
    embeddings = read_npy(path)
    return embeddings.astype(embeddings.dtype.newbyteorder("="), copy=False)
