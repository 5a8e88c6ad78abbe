"""Reads the rows of JSONL, CSV and parquet files and of data sets on the Hugging Face hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from leeroo_env import table
from leeroo_env.errors import InputError

CSV_FIELD_CHARS = 2**31 - 1


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file with one JSON object a line; empty lines are skipped.

    Raises:
        InputError: one line that names file and row, counted from 0. So do the readers below.
    """
    number = 0
    with path.open(encoding="utf-8") as file:
        try:
            for line in file:
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{path}: row {number}: is not a JSON object")
                    yield row
                    number += 1
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{path}: row {number}: is not valid JSON: {error}") from error


def read_csv(path: Path) -> pa.Table:
    """The columns of a CSV file with a header, all as text, so that an id "007" keeps its zeros."""
    csv.field_size_limit(CSV_FIELD_CHARS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            rows = [row for row in reader if row]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a readable CSV file: {error}") from error
    _check_header(path, header)
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise InputError(f"{path}: row {number}: has {len(row)} fields, the header has {len(header)}")
    columns = zip(*rows, strict=True) if rows else ((),) * len(header)
    return pa.table([pa.array(column, pa.string()) for column in columns], names=header)


def read_parquet(path: Path) -> pa.Table:
    """The columns of a parquet file, each with a name of its own."""
    columns = table.read_parquet(path)
    _check_header(path, columns.column_names)
    return columns


def _check_header(path: Path, header: Sequence[str]) -> None:
    for name in header:
        if header.count(name) > 1:
            raise InputError(f"{path}: column {name} appears twice")


def read_dataset(source: str, name: str, configuration: str | None, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set; `source` names it in error messages."""
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{source}: not a .jsonl, .parquet or .csv file; data sets need: pip install datasets"
        ) from None
    try:
        rows = datasets.load_dataset(name, configuration, split=split)
    except Exception as error:  # the library has an exception of its own for each of a dozen causes
        raise InputError(f"{source}: cannot be loaded as a data set: {(str(error).splitlines() or [''])[0]}") from error
    return iter(rows)
