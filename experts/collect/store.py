"""Stores answers durably in parquet parts, so that none is paid for twice.

A part is written under a temporary name, synced and renamed, so that it is complete or absent. Answers are found by
their keys (`experts.pool.keys_for`); failed calls are stored with their error but never found.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from experts.spending import NOT_ASKED
from experts.types import Answer, Expert, Query
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
    }
)
MERGE_ABOVE = 256  # parts


def parts_directory(out: Path) -> Path:
    """The directory of the stored answers of a table."""
    return out.with_name(out.name + ".parts")


class Store:
    """The answers in one directory: `found` by key, extended by `append`. Safe to use from several threads."""

    def __init__(self, directory: Path, found: dict[str, Answer], next_part: int) -> None:
        self.directory = directory
        self.found = found
        self._numbers = itertools.count(next_part)
        self._lock = threading.Lock()

    def append(self, expert: str, rows: Sequence[tuple[str, Query, Answer]]) -> None:
        """Stores answers with their keys, on disk when this returns. Calls that were not made are left out."""
        made = [row for row in rows if row[2].error != NOT_ASKED]
        if not made:
            return
        table = _rows(expert, made)
        with self._lock:
            _write(table, self.directory / f"{next(self._numbers):06d}.parquet")
            for key, _, answer in made:
                if answer.error is None:
                    self.found.setdefault(key, answer)


@contextmanager
def open_store(directory: Path) -> Iterator[Store]:
    """Opens the store in a directory, which is created if necessary, for this process alone.

    Raises:
        InputError: another process has it open, or a part cannot be read.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("a")
    except OSError as error:
        raise InputError(f"{directory}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{directory}: another process is collecting into it") from None
        for unfinished in directory.glob(".*.tmp"):
            unfinished.unlink()
        table = read_parts(directory)
        parts = _parts(directory)
        number = int(parts[-1].stem) + 1 if parts else 0
        if len(parts) > MERGE_ABOVE:
            _write(table, directory / f"{number:06d}.parquet")
            for part in parts:
                part.unlink()
            number += 1
        yield Store(directory, successes(table), number)


def read_parts(directory: Path) -> pa.Table:
    """All rows of all parts, oldest first, including failed calls; no rows if there is no directory."""
    tables = [pa.Table.from_batches([], SCHEMA)]
    for part in _parts(directory):
        try:
            tables.append(pq.ParquetFile(part).read().cast(SCHEMA))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{part}: not a readable part: {str(error).splitlines()[0]}") from None
    return pa.concat_tables(tables)


def successes(table: pa.Table) -> dict[str, Answer]:
    """The answers by key. An interrupted merge may leave rows twice, with equal answers."""
    table = table.filter(pc.is_null(table["error"]))
    columns = ("output", "prompt_tokens", "completion_tokens", "cost_usd", "latency_s")
    values = zip(*(table[name].to_pylist() for name in columns), strict=True)
    found: dict[str, Answer] = {}
    for key, value in zip(table["key"].to_pylist(), values, strict=True):
        found.setdefault(key, Answer(*value))
    return found


def missing_queries(key: Callable[[Query], str], queries: Sequence[Query], found: Collection[str]) -> list[Query]:
    """The queries without a stored answer; one of those with equal prompts."""
    return list({k: query for query in queries if (k := key(query)) not in found}.values())


class StoredExpert:
    """An expert that looks up each answer in a store before asking, and stores new answers."""

    def __init__(self, expert: Expert, key: Callable[[Query], str], store: Store) -> None:
        self.name = expert.name
        self._expert, self._key, self._store = expert, key, store

    def found(self, query: Query) -> Answer | None:
        """The stored answer, if there is one."""
        return self._store.found.get(self._key(query))

    def missing(self, queries: Sequence[Query]) -> list[Query]:
        """See `missing_queries`."""
        return missing_queries(self._key, queries, self._store.found)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """The stored or new answers; new ones are on disk when this returns."""
        keys = [self._key(query) for query in queries]
        missing = {key: query for key, query in zip(keys, queries, strict=True) if key not in self._store.found}
        new = dict(zip(missing, self._expert.answer(list(missing.values())), strict=True)) if missing else {}
        self._store.append(self.name, [(key, missing[key], answer) for key, answer in new.items()])
        return [new.get(key) or self._store.found[key] for key in keys]


def _parts(directory: Path) -> list[Path]:
    return sorted((p for p in directory.glob("*.parquet") if p.stem.isdecimal()), key=lambda part: int(part.stem))


def _rows(expert: str, rows: Sequence[tuple[str, Query, Answer]]) -> pa.Table:
    now = datetime.now(timezone.utc)
    values: list[dict[str, Any]] = []
    for key, query, answer in rows:
        values.append(
            {
                "key": key,
                "query_id": query.query_id,
                "expert": expert,
                "output": answer.text,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "cost_usd": answer.cost_usd,
                "latency_s": answer.latency_s,
                "error": answer.error,
                "time": now,
            }
        )
    return pa.Table.from_pylist(values, schema=SCHEMA)


def _write(table: pa.Table, path: Path) -> None:
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


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
