"""Imports RouterBench, which has one wide row per query."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experts.data.fields import parsed_list, text_of
from experts.importers.base import COLUMNAR, Imported, Output, read_columns, storable, write_imported
from experts.importers.pickled_frame import read_frame
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertInfo, ExpertTable


def import_routerbench(file: tyro.conf.Positional[Path], output: Output, outputs: bool = False) -> ExpertTable:
    """RouterBench (withmartian/routerbench): a pickled data frame, .csv or .parquet with one wide row per query.

    Columns: sample_id, prompt, eval_name, and for every model MODEL (its score), MODEL|total_cost and
    MODEL|model_response; the oracle's column is ignored. A pickle is read by an unpickler that allows data frames and
    arrays only. RouterBench has no token counts.

    Args:
        file: the published file.
        outputs: keep the models' responses in the table.
    """
    columns = _read_wide(file)
    models = [name.removesuffix("|total_cost") for name in columns if name.endswith("|total_cost")]
    for name in ("sample_id", "prompt", "eval_name", *models):
        if name not in columns:
            raise InputError(f"{file}: column {name} is missing")
    if not models:
        raise InputError(f"{file}: has no column MODEL|total_cost, so no models")
    collected = Imported()
    for row, query_id in enumerate(columns["sample_id"]):
        values = {name: columns[name][row] for name in ("sample_id", "prompt", "eval_name")}
        for name, value in values.items():
            if not isinstance(value, str) or not value:
                raise InputError(f"{file}: column {name}, row {row}: {value!r} is not text")
            text_of(value, f"{file}: column {name}, row {row}")
        if query_id in collected.queries:
            raise InputError(f"{file}: column sample_id, row {row}: {query_id!r} appears twice")
        collected.queries[query_id] = Query(query_id, _unlisted(values["prompt"]), values["eval_name"])
    for model in models:
        _add_model(collected, file, columns, model, outputs)
    description = f"RouterBench answers of {len(models)} language models ({file.name})"
    infos = [ExpertInfo(name=model) for model in models]
    return write_imported(output, description, infos, collected, list(collected.queries))


def _add_model(collected: Imported, file: Path, columns: Mapping[str, list[Any]], model: str, outputs: bool) -> None:
    """Adds one model's answers; an answer without a score or a cost counts as missing."""
    responses = columns.get(f"{model}|model_response", [None] * len(columns[model])) if outputs else None
    for row, query in enumerate(collected.queries.values()):
        score = _number(_score(columns[model][row]), f"{file}: column {model}, row {row}")
        cost_usd = _number(columns[f"{model}|total_cost"][row], f"{file}: column {model}|total_cost, row {row}")
        if score is None or cost_usd is None:
            continue
        if not 0 <= score <= 1:
            raise InputError(f"{file}: column {model}, row {row}: {score!r} is not in [0, 1]")
        if not 0 <= cost_usd < float("inf"):
            raise InputError(f"{file}: column {model}|total_cost, row {row}: {cost_usd!r} is not a cost >= 0")
        response = responses[row] if responses else None
        collected.add(
            query, model, score, cost_usd, output=storable(_unlisted(response)) if isinstance(response, str) else None
        )


def _score(value: Any) -> Any:
    """1 or 0 for a truth value, also one written as text."""
    text = str(value).strip().lower()
    return float(text == "true") if text in ("true", "false") else value


def _number(value: Any, where: str) -> float | None:
    """A float; None for an empty value or NaN."""
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise TypeError("a cost is no truth value")
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {value!r} is not a number") from None
    return None if np.isnan(number) else number


def _unlisted(text: str) -> str:
    """The text of a list of turns, which RouterBench writes in Python's syntax: "['first', 'second']"."""
    if not text.startswith("["):
        return text
    turns = parsed_list(text)
    whole = turns and all(isinstance(turn, str) for turn in turns)
    return "\n".join(turns) if whole else text


def _read_wide(file: Path) -> dict[str, list[Any]]:
    """The columns of the file, by name."""
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    if file.suffix in COLUMNAR:
        return read_columns(file).to_pydict()
    frame = read_frame(file)
    return {str(name): frame.iloc[:, i].tolist() for i, name in enumerate(frame.columns)}
