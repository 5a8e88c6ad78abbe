"""Imports RouterDC's tests, whose questions have a score in [0, 1] of each model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro

from experts.data.fields import text_of
from experts.data.readers import shown
from experts.importers.base import Imported, Output, number_in, read_list, storable, write_imported
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertInfo, ExpertTable

TESTS = {"mmlu": True, "gsm8k": False, "cmmlu": True, "arc_challenge": True, "humaneval": False}
"""The five in-distribution tests; True: scores are probabilities of the right choice, of which any above 0 is right."""
USD_PER_CALL = 1e-4  # the models are of one size, and RouterDC has no costs
VAL_EVERY = 7  # of the questions that are not for testing: the share that hash_split gives val


def import_routerdc(directory: tyro.conf.Positional[Path], output: Output) -> ExpertTable:
    """RouterDC (shuhao02/RouterDC, datasets/split2_model7): its five in-distribution tests, of which it has a train and
    a test file each.

    Every file is a list of {question, scores: {model: score}}. Scores of mmlu, cmmlu and arc_challenge that are above 0
    count as 1, as in its evaluation. Every call costs the same. Of the questions of the train files every seventh is
    val. MMLU and CMMLU have their train files in the directory split2_model7_cluster beside it.
    """
    collected = Imported()
    for test, any_is_right in TESTS.items():
        for part in ("train", "test"):
            file = _find(directory, test, part)
            for row, line in enumerate(read_list(file, "questions")):
                split = "test" if part == "test" else "val" if row % VAL_EVERY == VAL_EVERY - 1 else "train"
                query = Query(f"{test}-{part}-{row}", _text(line, f"{file}: question {row}"), test, split=split)
                _add(collected, f"{file}: question {row}", query, line, any_is_right)
    infos = [ExpertInfo(name=name) for name in dict.fromkeys(collected.answers["expert"])]
    description = f"RouterDC's scores of {len(infos)} language models in five tests; every call costs the same"
    return write_imported(output, description, infos, collected, list(collected.queries))


def _find(directory: Path, test: str, part: str) -> Path:
    names = [f"{test}{mark}{part}.json" for mark in ("_", "-")]
    places = [directory, directory.with_name(f"{directory.name}_cluster")]
    for path in (place / name for place in places for name in names):
        if path.is_file():
            return path
    raise InputError(f"{directory}: contains no {names[0]}")


def _text(line: Any, where: str) -> str:
    if not isinstance(line, dict) or not isinstance(line.get("question"), str):
        raise InputError(f"{where}: field question is missing or not text")
    return text_of(storable(line["question"]), f"{where}: field question")


def _add(collected: Imported, where: str, query: Query, line: dict[str, Any], any_is_right: bool) -> None:
    scores = line.get("scores")
    if not isinstance(scores, dict) or not scores:
        raise InputError(f"{where}: field scores: {shown(scores)} is missing or empty")
    collected.queries[query.query_id] = query
    for name, value in scores.items():
        score = number_in(value, f"{where}: score of {name}", 1.0)
        collected.add(query, name, float(score > 0) if any_is_right else score, USD_PER_CALL)
