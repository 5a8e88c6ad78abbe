"""Imports the prompts of ParetoBandit, each with the graded reward and the cost of every model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro

from experts.data.fields import text_of
from experts.data.readers import read_jsonl, shown
from experts.importers.base import Imported, Output, number_in, write_imported
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertInfo, ExpertTable

TEST_FILE = "test_holdout.jsonl"
VAL_EVERY = 7  # of the prompts that are not for testing: the share that hash_split gives val


def import_paretobandit(directory: tyro.conf.Positional[Path], output: Output) -> ExpertTable:
    """ParetoBandit (Taberner-Miller, 2026): the .jsonl files that its package has in pareto_bandit/data/examples.

    Every line has a prompt, its source, and for each model in `arms` a reward in [0, 1] and a cost in dollars. The
    prompts of test_holdout.jsonl are the test split, as there; of the others every seventh is val.
    """
    if not (directory / TEST_FILE).is_file():
        raise InputError(f"{directory}: contains no {TEST_FILE}")
    collected = Imported()
    for file in sorted(directory.glob("*.jsonl")):
        for row, line in enumerate(read_jsonl(file)):
            split = "test" if file.name == TEST_FILE else "val" if row % VAL_EVERY == VAL_EVERY - 1 else "train"
            _add(collected, f"{file}: row {row}", f"{file.stem}-{row}", line, split)
    infos = [ExpertInfo(name=name) for name in dict.fromkeys(collected.answers["expert"])]
    description = f"Rewards and costs of {len(infos)} language models from the example data of ParetoBandit"
    return write_imported(output, description, infos, collected, list(collected.queries))


def _add(collected: Imported, where: str, query_id: str, line: dict[str, Any], split: str) -> None:
    for name, kind in (("prompt", str), ("source", str), ("arms", dict)):
        if not isinstance(line.get(name), kind) or not line[name]:
            raise InputError(f"{where}: field {name}: {shown(line.get(name))} is missing, empty or not {kind.__name__}")
    query = Query(query_id, text_of(line["prompt"], f"{where}: field prompt"), line["source"], split=split)
    collected.queries[query_id] = query
    for name, arm in line["arms"].items():
        reward, cost = (arm.get(key) if isinstance(arm, dict) else None for key in ("reward", "cost"))
        score = number_in(reward, f"{where}: reward of {name}", 1.0)
        collected.add(query, name, score, number_in(cost, f"{where}: cost of {name}"))
