"""Loads queries from JSONL, parquet and CSV files and from data sets on the Hugging Face hub.

The first of these columns that a source has is read:

| field | columns | |
|---|---|---|
| query_id | query_id, id, question_id, sample_id | unique; without such a column, a hash of the text |
| text | text, question, prompt, query | required |
| domain | domain, category, subject | may be empty |
| reference | reference, answer, target | the graders compare with it; either all rows have one or none |
| split | split | train, val, test or empty |
| | choices, options | a list: added to the text as lines "A. ...", and a numeric answer becomes its letter |

This covers the files of MMLU (question, choices, answer as a number), MMLU-Pro (question, options, answer as a letter)
and GSM8K (the answer follows "####").
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from experts.data.readers import read_csv, read_dataset, read_jsonl, read_parquet
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.table import SPLITS

COLUMNS = {
    "query_id": ("query_id", "id", "question_id", "sample_id"),
    "text": ("text", "question", "prompt", "query"),
    "domain": ("domain", "category", "subject"),
    "reference": ("reference", "answer", "target"),
    "options": ("choices", "options"),
    "split": ("split",),
}
DATASETS = {  # name on the hub: configuration, split, prefix of the query ids
    "cais/mmlu": ("all", "test", "mmlu-"),
    "openai/gsm8k": ("main", "test", "gsm8k-"),
    "TIGER-Lab/MMLU-Pro": (None, "test", "mmlupro-"),
}
READERS: dict[str, Callable[[Path], Iterable[dict[str, Any]]]] = {
    ".jsonl": read_jsonl,
    ".parquet": lambda path: read_parquet(path).to_pylist(),
    ".csv": lambda path: read_csv(path).to_pylist(),
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FINAL_ANSWER = re.compile(r"####\s*(\S.*?)\s*$", re.DOTALL)


def load_queries(source: str | Path, limit: int | None = None, split: str | None = None) -> list[Query]:
    """Reads queries from a file (.jsonl, .parquet, .csv) or a data set on the Hugging Face hub.

    Args:
        source: the file, or the data set's name; "NAME:CONFIGURATION" selects one of its configurations.
        limit: the maximum number of queries, from the beginning.
        split: of a file, the rows with this split; of a data set, the split to load (default "test"). The queries of a
            data set have no split of their own, so that a table made of them is split by its query ids.

    Raises:
        InputError: names file, row (counted from 0) and field. A file must not repeat a query id; the repeated
            questions of a data set are left out with a warning that counts them.
    """
    if limit is not None and limit < 1:
        raise InputError(f"{source}: limit {limit} must be at least 1")
    path = Path(source)
    if path.suffix.lower() in READERS:
        queries = [query for query in _load_file(path) if split in (None, query.split)][:limit]
    else:
        queries = _load_dataset(str(source), limit, split)
    if not queries:
        raise InputError(f"{source}: contains no queries" + (f" of split {split!r}" if split else ""))
    return queries


def _load_file(path: Path) -> list[Query]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    queries: list[Query] = []
    ids: set[str] = set()
    for number, row in enumerate(READERS[path.suffix.lower()](path)):
        query = _query(row, f"{path}: row {number}")
        if query.query_id in ids:
            raise InputError(f"{path}: row {number}: field query_id: {query.query_id!r} appears twice")
        ids.add(query.query_id)
        queries.append(query)
    _check_references(queries, path)
    return queries


def render_options(question: str, options: Sequence[str]) -> str:
    """The question followed by its options, one a line: "A. ...", "B. ..."."""
    lines = (f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return "\n".join([question, *lines])


def text_id(text: str) -> str:
    """The query id of a text without one: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _query(row: dict[str, Any], where: str, prefix: str = "") -> Query:
    if _column(row, "text") is None:
        raise InputError(f"{where}: has none of the fields {', '.join(COLUMNS['text'])}")
    question = _string(row, "text", where)
    options = _options(row, where)
    text = render_options(question, options) if options else question
    split = row.get("split") or None
    if split is not None and split not in SPLITS:
        raise InputError(f"{where}: field split: {split!r} is not one of {', '.join(SPLITS)}")
    return Query(
        query_id=prefix + (_string(row, "query_id", where) if _column(row, "query_id") else text_id(text)),
        text=text,
        domain=_domain(row, where),
        reference=_reference(row, options, where),
        split=split,
    )


def _column(row: dict[str, Any], field: str) -> str | None:
    """The row's column for a field."""
    return next((name for name in COLUMNS[field] if name in row), None)


def _string(row: dict[str, Any], field: str, where: str) -> str:
    """The value of an existing field as a nonempty string."""
    name = _column(row, field) or field
    value = row[name]
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{where}: field {name}: is empty")
    if not isinstance(value, str):
        raise InputError(f"{where}: field {name}: {value!r} is not text")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{where}: field {name}: {value[:60]!r} contains half of a surrogate pair")
    return value


def _domain(row: dict[str, Any], where: str) -> str:
    name = _column(row, "domain")
    return "" if name is None or row[name] == "" else _string(row, "domain", where)


def _options(row: dict[str, Any], where: str) -> list[str]:
    name = _column(row, "options")
    if name is None or row[name] is None:
        return []
    options = row[name]
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise InputError(f"{where}: field {name}: {options!r} is not a list of texts")
    options = [option for option in options if option != "N/A"]  # the padding of MMLU-Pro
    if len(options) > len(LETTERS):
        raise InputError(f"{where}: field {name}: has more than {len(LETTERS)} options")
    return options


def _reference(row: dict[str, Any], options: list[str], where: str) -> str | None:
    """The reference: a letter if it is the number of an option, else the text after "####" if there is one."""
    name = _column(row, "reference")
    value = row[name] if name is not None else None
    if value is None or value == "":
        return None
    if isinstance(value, float) and not value.is_integer():
        return str(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if options and not 0 <= value < len(options):
            raise InputError(f"{where}: field {name}: {value!r} is not the number of one of the {len(options)} options")
        return LETTERS[int(value)] if options else str(int(value))
    text = _string(row, "reference", where)
    final = _FINAL_ANSWER.search(text)
    return final[1] if final else text


def _check_references(queries: Sequence[Query], path: Path) -> None:
    """All or none: a single missing reference would only be noticed after the answers to it are paid for."""
    missing = [number for number, query in enumerate(queries) if query.reference is None]
    if missing and len(missing) < len(queries):
        raise InputError(f"{path}: row {missing[0]}: field reference: is empty, but other rows have one")


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
