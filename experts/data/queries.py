"""Loads queries from JSONL, CSV, TSV and parquet files and from data sets on the Hugging Face hub.

The first of these columns that a source has is read:

| field | columns | |
|---|---|---|
| query_id | query_id, id, question_id, sample_id | unique; without such a column, a hash of the text |
| text | text, question, prompt, query | required |
| domain | domain, category, subject | may be empty |
| reference | reference, answer, target | the graders compare with it; either all rows have one or none |
| split | split | train, val, test or empty |
| | choices, options | a list: added to the text as lines "A. ...", and the reference becomes an option's letter |

This covers the files of MMLU (question, choices, answer as a number), MMLU-Pro (question, options, answer as a letter)
and GSM8K (the answer follows "####").
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from experts.data.fields import COLUMNS, column_of, options_of, reference_of, render_options, string
from experts.data.readers import ENDINGS, read_dataset, reader_of, shown
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.table import SPLITS

DATASETS = {  # name on the hub: configuration, split, prefix of the query ids
    "cais/mmlu": ("all", "test", "mmlu-"),
    "openai/gsm8k": ("main", "test", "gsm8k-"),
    "TIGER-Lab/MMLU-Pro": (None, "test", "mmlupro-"),
}
DATASET_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?")


Rows = Iterable[dict[str, Any]]


def load_queries(
    source: str | Path,
    limit: int | None = None,
    split: str | None = None,
    read_many: Callable[[str], Rows] | None = None,
) -> list[Query]:
    """Reads queries from a file (.jsonl, .ndjson, .csv, .tsv, also with .gz, .parquet) or a data set on the hub.

    Args:
        source: the file, or the data set's name; "NAME:CONFIGURATION" selects one of its configurations.
        limit: the maximum number of queries, from the beginning.
        split: of a file, the rows with this split; of a data set, the split to load (default "test"). The queries of a
            data set have no split of their own, so that a table made of them is split by its query ids.
        read_many: reads the rows of a directory of files, or of an address with "://".

    Raises:
        InputError: names file, row (counted from 0) and field. A file must not repeat a query id; the repeated
            questions of a data set are left out with a warning that counts them.
    """
    if limit is not None and limit < 1:
        raise InputError(f"{source}: limit {limit} must be at least 1")
    path = Path(source)
    reader = reader_of(path)
    if read_many is not None and ("://" in str(source) or os.path.isdir(path)):
        queries = [q for q in _from_rows(read_many(str(source)), str(source)) if split in (None, q.split)][:limit]
    elif reader is not None:
        queries = [query for query in _load_file(path, reader) if split in (None, query.split)][:limit]
    elif os.path.isfile(path) or DATASET_NAME.fullmatch(str(source)) is None:
        raise InputError(f"{path}: the ending {path.suffix!r} is not known; a file of questions ends in {ENDINGS}")
    else:
        queries = _load_dataset(str(source), limit, split)
    if not queries:
        raise InputError(f"{source}: contains no queries" + (f" of split {split!r}" if split else ""))
    return queries


def _load_file(path: Path, read: Callable[[Path], Rows]) -> list[Query]:
    if not os.path.isfile(path):
        raise InputError(f"{path}: " + ("is a directory" if os.path.isdir(path) else "no such file"))
    return _from_rows(read(path), str(path))


def _from_rows(rows: Rows, source: str) -> list[Query]:
    queries: list[Query] = []
    ids: set[str] = set()
    for number, row in enumerate(rows):
        query = _query(row, f"{source}: row {number}")
        if query.query_id in ids:
            raise InputError(f"{source}: row {number}: field query_id: {shown(query.query_id)} appears twice")
        ids.add(query.query_id)
        queries.append(query)
    _check_references(queries, source)
    return queries


def text_id(text: str) -> str:
    """The query id of a text without one: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _query(row: dict[str, Any], where: str, prefix: str = "") -> Query:
    name = column_of(row, "text")
    if name is None:
        raise InputError(f"{where}: has none of the fields {', '.join(COLUMNS['text'])}, but {shown(list(row))}")
    question = string(row, name, where)
    options = options_of(row, where)
    text = render_options(question, options) if options else question
    split = row.get("split") or None
    if split is not None and split not in SPLITS:
        raise InputError(f"{where}: field split: {shown(split)} is not one of {', '.join(SPLITS)}")
    named, domain = column_of(row, "query_id"), column_of(row, "domain")
    return Query(
        query_id=prefix + (string(row, named, where) if named else text_id(text)),
        text=text,
        domain="" if domain is None or row[domain] == "" else string(row, domain, where),
        reference=reference_of(row, options, where),
        split=split,
    )


def _check_references(queries: Sequence[Query], source: str) -> None:
    """All or none: a single missing reference would only be noticed after the answers to it are paid for."""
    missing = [number for number, query in enumerate(queries) if query.reference is None]
    if missing and len(missing) < len(queries):
        raise InputError(f"{source}: row {missing[0]}: field reference: is empty, but other rows have one")


def _load_dataset(source: str, limit: int | None, split: str | None) -> list[Query]:
    name, _, configuration = source.partition(":")
    known_configuration, known_split, prefix = DATASETS.get(name, (None, "test", ""))
    rows = read_dataset(source, name, configuration or known_configuration, split or known_split)
    kept: dict[str, Query] = {}
    repeated = 0
    for number, row in enumerate(rows):
        query = _query({k: v for k, v in row.items() if k != "split"}, f"{source}: row {number}", prefix)
        repeated += query.query_id in kept
        kept.setdefault(query.query_id, query)
        if len(kept) == limit:
            break
    if repeated:
        warnings.warn(f"{source}: {repeated} repeated questions are left out", stacklevel=3)
    return list(kept.values())
