"""Reads the rows of JSONL, CSV, TSV and parquet files and of data sets on the Hugging Face hub.

Every reader raises InputError: one line that names file, row (counted from 0, without empty lines) and problem.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import reprlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from leeroo_env import table
from leeroo_env.errors import InputError

CSV_FIELD_CHARS = 2**31 - 1
UNREADABLE = (OSError, EOFError, zlib.error)  # what a missing, cut off or damaged file raises
BAD_BYTE = re.compile("[\udc80-\udcff]")  # how the error handler "surrogateescape" decodes a byte that is not UTF-8


def shown(value: Any) -> str:
    """A value for an error message: one short line, also of a deeply nested value."""
    text = repr(value) if isinstance(value, str | int | float) or value is None else reprlib.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file with one JSON object a line; empty lines are skipped."""
    number = 0
    try:
        with _open_text(path) as file:
            for line in file:
                if line.strip():
                    yield json_object(line, f"{path}: row {number}")
                    number += 1
    except UNREADABLE as error:
        raise InputError(f"{path}: row {number}: cannot be read: {error}") from error


def json_object(line: str, where: str) -> dict[str, Any]:
    """The object in a line of JSON."""
    _check_encoding([line], where)
    try:
        row = json.loads(line, object_pairs_hook=_distinct)
    except RecursionError:
        raise InputError(f"{where}: is not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{where}: is not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: is not a JSON object")
    return row


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {shown(next(name for name in names if names.count(name) > 1))} appears twice")
    return fields


def read_csv(path: Path, delimiter: str = ",") -> pa.Table:
    """The columns of a CSV file with a header, all as text, so that an id "007" keeps its zeros and "NA" is no gap."""
    csv.field_size_limit(CSV_FIELD_CHARS)
    kind = "CSV" if delimiter == "," else "TSV"
    try:
        with _open_text(path) as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [row for row in reader if row]
    except (csv.Error, *UNREADABLE) as error:
        raise InputError(f"{path}: not a readable {kind} file: {error}") from error
    _check_encoding(header, f"{path}: not a readable {kind} file: header")
    _check_header(path, header)
    for number, row in enumerate(rows):
        _check_encoding(row, f"{path}: not a readable {kind} file: row {number}")
        if len(row) != len(header):
            raise InputError(f"{path}: row {number}: has {len(row)} fields, the header has {len(header)}")
    columns = zip(*rows, strict=True) if rows else ((),) * len(header)
    return pa.table([pa.array(column, pa.string()) for column in columns], names=header)


def read_tsv(path: Path) -> pa.Table:
    """As `read_csv`, with tabs between the fields."""
    return read_csv(path, "\t")


def _open_text(path: Path) -> io.TextIOBase:
    """UTF-8 without its byte order mark, unpacked if the name ends in .gz; line ends stay as they are."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    file: Any = opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")
    return file


def _check_encoding(texts: Iterable[str], where: str) -> None:
    for text in texts:
        if not text.isascii() and (bad := BAD_BYTE.search(text)):
            raise InputError(f"{where}: is not UTF-8: byte 0x{ord(bad[0]) - 0xDC00:02x}")


def read_parquet(path: Path) -> pa.Table:
    """The columns of a parquet file, each with a name of its own."""
    columns = table.read_parquet(path)
    _check_header(path, columns.column_names)
    return columns


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    columns = read_parquet(path)
    try:
        return columns.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:  # such as a date beyond the year 9999
        raise InputError(f"{path}: holds a value that cannot be read: {str(error).splitlines()[0]}") from None


def _check_header(path: Path, header: Sequence[str]) -> None:
    for name in header:
        if header.count(name) > 1:
            raise InputError(f"{path}: column {name} appears twice")


READERS: dict[str, Callable[[Path], Iterable[dict[str, Any]]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".parquet": _parquet_rows,
    ".csv": lambda path: read_csv(path).to_pylist(),
    ".tsv": lambda path: read_tsv(path).to_pylist(),
}
ENDINGS = f"{', '.join(READERS)}, or one of these but parquet with .gz after it"


def reader_of(path: Path) -> Callable[[Path], Iterable[dict[str, Any]]] | None:
    """The reader of a file with this name; None if its ending is not known."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    if endings[-1:] == [".gz"]:
        return READERS.get(endings[0]) if endings[0] != ".parquet" else None
    return READERS.get(endings[-1]) if endings else None


def read_dataset(source: str, name: str, configuration: str | None, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set; `source` names it in error messages."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"{source}: no such file; to load a data set of this name: pip install datasets") from None
    try:
        builder = datasets.load_dataset_builder(name, configuration)
        # in a CSV file "NA", "null" and "None" are text, only an empty field is a gap
        gaps = {"keep_default_na": False, "na_values": [""]} if hasattr(builder.config, "keep_default_na") else {}
        yield from datasets.load_dataset(name, configuration, split=split, **gaps)
    except Exception as error:  # the library has an exception of its own for each of a dozen causes
        raise InputError(f"{source}: cannot be loaded as a data set: {(str(error).splitlines() or [''])[0]}") from error
