"""Imports LLMRouterBench, which has one JSON file for each data set and model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro

from experts.data.fields import text_of
from experts.importers.base import Imported, Output, check_tokens, number_in, storable, write_imported
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.files import read_json
from leeroo_env.table import ExpertInfo, ExpertTable


def import_llmrouterbench(
    directory: tyro.conf.Positional[Path], output: Output, models: str = "", outputs: bool = False
) -> ExpertTable:
    """LLMRouterBench (ynulihao/LLMRouterBench): the unpacked directory results/bench, DATASET/SPLIT/MODEL/TIME.json.

    Each file has `records` with index, prompt, score, prompt_tokens, completion_tokens, cost and raw_output. Of several
    files of a model the last is read. The domain of a query is its data set. Queries that a model lacks are left out.

    Args:
        directory: of the result files.
        models: names of the models, separated by commas; all if empty.
        outputs: keep the models' outputs in the table.
    """
    wanted = [name.strip() for name in models.split(",") if name.strip()]
    latest: dict[tuple[str, str, str], Path] = {}
    for file in sorted(directory.glob("*/*/*/*.json")):
        dataset, part, model = file.relative_to(directory).parts[:3]
        if not wanted or model in wanted:
            latest[dataset, part, model] = file
    names = wanted or sorted({model for *_, model in latest})
    if missing := [name for name in names if name not in {model for *_, model in latest}]:
        raise InputError(f"--models: {directory} has no results of {missing[0]!r}")
    if not latest:
        raise InputError(f"{directory}: contains no DATASET/SPLIT/MODEL/TIME.json")
    collected = Imported()
    for (dataset, part, model), file in latest.items():
        content = read_json(file)
        records = content.get("records") if isinstance(content, dict) else None
        if not isinstance(records, list):
            raise InputError(f"{file}: field records: is missing or not a list")
        for row, record in enumerate(records):
            _add(collected, f"{file}: record {row}", f"{dataset}-{part}", dataset, model, record, outputs)
    description = f"LLMRouterBench's results of {len(names)} language models"
    return write_imported(
        output, description, [ExpertInfo(name=name) for name in names], collected, [*collected.queries]
    )


def _add(collected: Imported, where: str, prefix: str, dataset: str, model: str, record: Any, outputs: bool) -> None:
    if not isinstance(record, dict) or "index" not in record or not isinstance(record.get("prompt"), str):
        raise InputError(f"{where}: needs index, prompt, score and cost")
    text = text_of(storable(record["prompt"]), f"{where}: field prompt")
    query = Query(f"{prefix}-{record['index']}", text, dataset)
    if collected.queries.setdefault(query.query_id, query).text != text:
        return collected.leave_out("answers to another wording of a question")
    tokens = {name: record.get(name) for name in ("prompt_tokens", "completion_tokens")}
    check_tokens(tokens, f"{where}: field")
    score = number_in(record.get("score"), f"{where}: field score", 1.0)
    cost_usd = number_in(record.get("cost"), f"{where}: field cost")
    output = record.get("raw_output") if outputs else None
    output = storable(output) if isinstance(output, str) else None
    collected.add(query, model, score, cost_usd, **tokens, output=output)
