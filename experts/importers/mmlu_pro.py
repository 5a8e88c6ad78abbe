"""Imports the result files that the authors of MMLU-Pro publish."""

from __future__ import annotations

import difflib
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic
import tyro

from experts.data.fields import LETTERS, render_options, text_of, without_padding
from experts.grading import grade_multiple_choice
from experts.importers.base import Imported, Output, storable, write_imported
from experts.spending import CHARS_PER_TOKEN
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertInfo, ExpertTable
from leeroo_env.yaml_file import read_yaml

SHOTS_SUFFIX = re.compile(r"^model_outputs_|_\d+shots?$")
OUTPUT_FIELDS = ("model_outputs", "response", "generated_text")
LARGEST_FILE_BYTES = 2 << 30


def import_mmlu_pro(
    directory: tyro.conf.Positional[Path], prices: Path, output: Output, outputs: bool = False
) -> ExpertTable:
    """The result files that the authors of MMLU-Pro publish (directory eval_results of TIGER-AI-Lab/MMLU-Pro).

    Reads `model_outputs_MODEL_5shots.zip` (also unzipped) and directories MODEL with JSON files. Each output is graded
    again: an output without a stated letter is wrong, where the authors guess. Tokens are estimated at 4 characters
    each, and costs are tokens times prices, without the few-shot prompt that the authors put before each question.

    Args:
        directory: the directory of the result files.
        prices: YAML or JSON that maps models to dollars per million tokens, or to {usd_per_mtok_in, usd_per_mtok_out}.
            Only models with a price are imported.
        outputs: keep the complete outputs in the table.
    """
    infos = _read_prices(prices)
    found = _result_files(directory)
    for name in infos:
        if name not in found:
            close = difflib.get_close_matches(name, list(found), n=1)
            hint = f"; {close[0]!r} has" if close else ""
            raise InputError(f"{prices}: {name!r} has no results in {directory}{hint}")
    collected = Imported()
    for name, info in infos.items():
        ids: set[str] = set()
        for where, record in _records(found[name]):
            _add_mmlu_pro(collected, info, where, record, ids, outputs)
    collected.leave_out("models without a price", len(found.keys() - infos.keys()))
    order = sorted(collected.queries, key=lambda query_id: (len(query_id), query_id))
    description = (
        f"MMLU-Pro answers of {len(infos)} language models from the authors' result files. Token counts are estimates "
        f"({CHARS_PER_TOKEN} characters a token, without the few-shot prompt), and so are the costs."
    )
    return write_imported(output, description, list(infos.values()), collected, order)


def _read_prices(path: Path) -> dict[str, ExpertInfo]:
    prices = read_yaml(path)
    if not isinstance(prices, dict) or not prices:
        raise InputError(f"{path}: is not a mapping of models to prices")
    infos = {}
    for name, price in prices.items():
        fields = price if isinstance(price, dict) else {"usd_per_mtok_in": price, "usd_per_mtok_out": price}
        try:
            if any(isinstance(value, bool) for value in fields.values()):
                raise TypeError("a price is no truth value")
            info = infos[str(name)] = ExpertInfo(name=str(name), **fields)
        except (pydantic.ValidationError, TypeError):
            raise InputError(f"{path}: {name}: {price!r} is not a price in dollars per million tokens") from None
        if info.usd_per_mtok_in is None or info.usd_per_mtok_out is None:
            raise InputError(f"{path}: {name}: needs usd_per_mtok_in and usd_per_mtok_out")
    return infos


def _result_files(directory: Path) -> dict[str, list[Path]]:
    """The result files by model."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory")
    found: dict[str, list[Path]] = {}
    for path in sorted(directory.rglob("*")):
        if path.suffix not in (".zip", ".json") or path.stem.endswith("summary") or path.name.startswith("."):
            continue
        inside = path.relative_to(directory).parts
        if len(inside) > 1:
            name = inside[0]
        else:
            name = path.stem if path.stem.startswith("model_outputs_") else directory.resolve().name
        found.setdefault(_model_name(name), []).append(path)
    if not found:
        raise InputError(f"{directory}: contains no .zip or .json result files")
    return found


def _model_name(stem: str) -> str:
    """The model of `model_outputs_Meta-Llama-3_1-8B_5shots`: Meta-Llama-3.1-8B."""
    return re.sub(r"(?<=\d)_(?=\d)", ".", SHOTS_SUFFIX.sub("", SHOTS_SUFFIX.sub("", stem)))


def _records(paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record with its position, for error messages."""
    for path in paths:
        for where, content in _json_contents(path):
            try:
                records = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: is not valid JSON: {error}") from error
            if not isinstance(records, list):
                raise InputError(f"{where}: is not a list of records")
            for number, record in enumerate(records):
                yield f"{where}: record {number}", record


def _json_contents(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        if path.suffix == ".json":
            yield str(path), path.read_bytes()
            return
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = Path(entry.filename)
                if name.suffix != ".json" or name.name.startswith(".") or name.stem.endswith("summary"):
                    continue
                if entry.file_size > LARGEST_FILE_BYTES:
                    raise InputError(f"{path}: {entry.filename} would unpack to {entry.file_size} bytes; refused")
                yield f"{path}: {entry.filename}", archive.read(entry)
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _add_mmlu_pro(collected: Imported, info: ExpertInfo, where: str, record: Any, ids: set[str], outputs: bool) -> None:
    query = _mmlu_pro_query(where, record)
    known = collected.queries.setdefault(query.query_id, query)
    if (known.text, known.reference) != (query.text, query.reference):
        return collected.leave_out("answers to another wording of a question")
    if query.query_id in ids:
        return collected.leave_out("repeated answers")
    ids.add(query.query_id)
    generated = next((record[name] for name in OUTPUT_FIELDS if record.get(name)), None)
    generated = generated[0] if isinstance(generated, list) else generated
    if not isinstance(generated, str):
        return collected.leave_out("records without an output")
    generated = storable(generated)
    grade = grade_multiple_choice(generated, query)
    tokens = _tokens(record, "prompt_tokens", query.text), _tokens(record, "completion_tokens", generated)
    cost_usd = (tokens[0] * (info.usd_per_mtok_in or 0) + tokens[1] * (info.usd_per_mtok_out or 0)) / 1e6
    collected.add(
        query,
        info.name,
        grade.score,
        cost_usd,
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        answer=grade.answer,
        output=generated if outputs else None,
    )


def _mmlu_pro_query(where: str, record: Any) -> Query:
    kinds = {"question_id": int, "question": str, "options": list, "answer": str, "category": str}
    for name, kind in kinds.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise InputError(f"{where}: field {name}: is missing or not {kind.__name__}")
    options = without_padding([str(option) for option in record["options"]])
    if len(record["answer"]) != 1 or record["answer"] not in LETTERS[: len(options)]:
        raise InputError(
            f"{where}: field answer: {record['answer']!r} is not the letter of one of {len(options)} options"
        )
    text = text_of(render_options(record["question"], options), f"{where}: field question")
    text_of(record["category"], f"{where}: field category")
    return Query(f"mmlupro-{record['question_id']}", text, record["category"], record["answer"])


def _tokens(record: dict[str, Any], name: str, text: str) -> int:
    """The record's token count; the published records have none, so it is estimated from the text."""
    counted = record.get(name)
    return counted if type(counted) is int and counted >= 0 else -(-len(text) // CHARS_PER_TOKEN)
