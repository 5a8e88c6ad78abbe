"""Query files -> queries: JSONL, parquet, CSV, or a Hugging Face dataset.

Columns by any of these names, the first that is there:

| field | columns | |
|---|---|---|
| query_id | query_id, id, question_id, sample_id | unique; without such a column it is made from a hash of the text |
| text | text, question, prompt, query | required |
| domain | domain, category, subject | empty where there is none |
| reference | reference, answer, target | what the graders compare with; every row has one or none has |
| split | split | train, val, test or nothing |
| | choices, options | a list: rendered below the text as lines "A. ...", and a numeric answer as its letter |

So the files of MMLU (question, choices, answer as a number), MMLU-Pro (question, options, answer as a letter) and GSM8K
(the answer stands behind "####") are read as they are.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

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
DATASETS = {  # name on the hub -> configuration, split, prefix of the query ids
    "cais/mmlu": ("all", "test", "mmlu-"),
    "openai/gsm8k": ("main", "test", "gsm8k-"),
    "TIGER-Lab/MMLU-Pro": (None, "test", "mmlupro-"),
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FINAL_ANSWER = re.compile(r"####\s*(\S.*?)\s*$", re.DOTALL)


def load_queries(source: str | Path, limit: int | None = None, split: str | None = None) -> list[Query]:
    """Reads queries from a file (.jsonl, .parquet, .csv) or a dataset on the Hugging Face hub.

    Args:
        source: the file, or the dataset's name; "NAME:CONFIGURATION" chooses one of its configurations.
        limit: at most this many, from the beginning.
        split: of a file, the rows whose split column says so; of a dataset, the split to load ("test" where None). The
            queries of a dataset carry no split of their own, so that a table made of them is split by its query ids.

    Raises:
        InputError: what is wrong, with file, row (counted from 0) and field. In a file nothing may be there twice; of a
            dataset, questions that it repeats are left out with a warning that counts them.
    """
    if limit is not None and limit < 1:
        raise InputError(f"{source}: limit {limit} must be at least 1")
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".csv": _read_csv}
    path = Path(source)
    if path.suffix.lower() in readers:
        if not path.is_file():
            raise InputError(f"{source}: no such file")
        queries = list(_unique(_queries(readers[path.suffix.lower()](path), str(source)), str(source)))
        _check_references(queries, str(source))
        queries = [query for query in queries if split in (None, query.split)][:limit]
    else:
        queries = _load_dataset(str(source), limit, split)
    if not queries:
        raise InputError(f"{source}: holds no queries" + (f" of split {split!r}" if split else ""))
    return queries


def render_options(question: str, options: Sequence[str]) -> str:
    """The question with its options below it, one a line: "A. ...", "B. ..."."""
    lines = (f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return "\n".join([question, *lines])


def text_id(text: str) -> str:
    """The query id of a text that has none: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _queries(rows: Iterable[dict[str, Any]], source: str) -> Iterator[Query]:
    for number, row in enumerate(rows):
        yield _query(row, f"{source}: row {number}")


def _query(row: dict[str, Any], where: str, prefix: str = "") -> Query:
    if _column(row, "text") is None:
        raise InputError(f"{where}: has none of the fields {', '.join(COLUMNS['text'])}")
    question = _string(row, "text", where)
    options = _options(row, where)
    text = render_options(question, options) if options else question
    split = row.get("split") or None
    if split is not None and split not in SPLITS:
        raise InputError(f"{where}: field split: {split!r} is none of {', '.join(SPLITS)}")
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
    """The value of a field that is there, as a string that says something."""
    name = _column(row, field) or field
    value = row[name]
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{where}: field {name}: is empty")
    if not isinstance(value, str):
        raise InputError(f"{where}: field {name}: {value!r} is no text")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{where}: field {name}: {value[:60]!r} holds half a surrogate pair, which is no text")
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
        raise InputError(f"{where}: field {name}: {options!r} is no list of texts")
    options = [option for option in options if option != "N/A"]  # MMLU-Pro pads with these
    if len(options) > len(LETTERS):
        raise InputError(f"{where}: field {name}: has more than {len(LETTERS)} options")
    return options


def _reference(row: dict[str, Any], options: list[str], where: str) -> str | None:
    """The reference: with options the letter of a number, else what stands behind "####" where that is there."""
    name = _column(row, "reference")
    value = row[name] if name is not None else None
    if value is None or value == "":
        return None
    if isinstance(value, float) and not value.is_integer():
        return str(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if options and not 0 <= value < len(options):
            raise InputError(f"{where}: field {name}: {value!r} is the number of none of the {len(options)} options")
        return LETTERS[int(value)] if options else str(int(value))
    text = _string(row, "reference", where)
    final = _FINAL_ANSWER.search(text)
    return final[1] if final else text


def _check_references(queries: Sequence[Query], source: str) -> None:
    """All or none: a reference that is missing among others would only be noticed after its answers are paid for."""
    missing = [number for number, query in enumerate(queries) if query.reference is None]
    if missing and len(missing) < len(queries):
        raise InputError(f"{source}: row {missing[0]}: field reference: is empty, but other rows have one")


def _unique(queries: Iterable[Query], source: str) -> Iterator[Query]:
    seen: dict[str, int] = {}
    for number, query in enumerate(queries):
        if query.query_id in seen:
            raise InputError(f"{source}: row {number}: field query_id: {query.query_id!r} is there twice")
        seen[query.query_id] = number
        yield query


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    with path.open(encoding="utf-8") as file:
        try:
            for line in file:
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{path}: row {number}: is no JSON object")
                    yield row
                    number += 1
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: row {number}: is no JSON: {error}") from error


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from error


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for number, row in enumerate(reader):
                if None in row or None in row.values():
                    raise InputError(f"{path}: row {number}: has more or fewer fields than the header")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}: line {reader.line_num}: is no CSV: {error}") from error


def _load_dataset(source: str, limit: int | None, split: str | None) -> list[Query]:
    name, _, configuration = source.partition(":")
    known_configuration, known_split, prefix = DATASETS.get(name, (None, "test", ""))
    try:
        import datasets
    except ImportError:
        raise InputError(f"{source}: no .jsonl, .parquet or .csv file; a dataset needs: pip install datasets") from None
    try:
        rows = datasets.load_dataset(name, configuration or known_configuration, split=split or known_split)
    except Exception as error:  # the library has an exception of its own for each of a dozen causes
        raise InputError(f"{source}: cannot be loaded as a dataset: {(str(error).splitlines() or [''])[0]}") from error
    kept: dict[str, Query] = {}
    repeated = 0
    for number, row in enumerate(rows):
        query = _query({k: v for k, v in row.items() if k != "split"}, f"{source}: row {number}", prefix)
        repeated += query.query_id in kept
        kept.setdefault(query.query_id, query)
        if len(kept) == limit:
            break
    if repeated:
        warnings.warn(f"{source}: {repeated} questions are there more than once; left out", stacklevel=3)
    return list(kept.values())
