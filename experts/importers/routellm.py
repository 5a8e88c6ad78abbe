"""Imports RouteLLM's MMLU and GSM8K, which say whether a strong and a weak model answered right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from experts.data.fields import text_of
from experts.data.readers import read_csv, read_jsonl, shown
from experts.importers.base import Imported, Output, storable, write_imported
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertInfo, ExpertTable

USD_PER_MTOK = {"gpt-4-1106-preview": 24.7, "mixtral-8x7b-instruct-v0.1": 0.24}  # section 5.4 of the paper
TOKENS = 1000  # of a call: its costs only have to be the same for every call
CONTAMINATED = "contaminated_prompts.jsonl"
RIGHT = {"true": 1.0, "false": 0.0}


def import_routellm(files: tyro.conf.Positional[list[Path]], output: Output) -> ExpertTable:
    """RouteLLM (lm-sys/RouteLLM): routellm/evals/mmlu/responses/*.csv, or routellm/evals/gsm8k/gsm8k_responses.csv.

    Columns: prompt and, for either model, True or False. RouteLLM counts calls, so that every call of a model costs the
    same here: 1,000 tokens at the prices of its paper. Prompts in contaminated_prompts.jsonl, beside the file or in the
    directory above, are left out as there; prompts that occur again are, too.

    Args:
        files: the .csv files; the domain of a question is its file's name.
    """
    collected, seen = Imported(), set()
    for file in files:
        columns = {name: column.to_pylist() for name, column in _read(file).items()}
        prompts, contaminated = columns["prompt"], _contaminated(file)
        for row, prompt in enumerate(prompts):
            if prompt in contaminated:
                collected.leave_out("contaminated prompts")
            elif prompt in seen:
                collected.leave_out("repeated prompts")
            else:
                seen.add(prompt)
                _add(collected, file, row, columns)
    infos = [ExpertInfo(name=name, usd_per_mtok_in=usd, usd_per_mtok_out=usd) for name, usd in USD_PER_MTOK.items()]
    description = f"RouteLLM's answers of {' and '.join(USD_PER_MTOK)}; every call costs what {TOKENS} tokens do"
    return write_imported(output, description, infos, collected, list(collected.queries))


def _read(file: Path) -> Mapping[str, Any]:
    table = read_csv(file)
    for name in ("prompt", *USD_PER_MTOK):
        if name not in table.column_names:
            raise InputError(f"{file}: column {name} is missing; there are {', '.join(table.column_names)}")
    return {name: table[name] for name in ("prompt", *USD_PER_MTOK)}


def _contaminated(file: Path) -> set[Any]:
    found = [path for path in (file.with_name(CONTAMINATED), file.parent.with_name(CONTAMINATED)) if path.is_file()]
    return {line.get("eval_prompt") for path in found for line in read_jsonl(path)}


def _add(collected: Imported, file: Path, row: int, columns: Mapping[str, Sequence[str]]) -> None:
    text = text_of(storable(columns["prompt"][row]), f"{file}: column prompt, row {row}")
    query = Query(f"{file.stem}-{row}", text, file.stem)
    collected.queries[query.query_id] = query
    for name, usd in USD_PER_MTOK.items():
        value = columns[name][row].strip().lower()
        if value not in RIGHT:
            raise InputError(f"{file}: column {name}, row {row}: {shown(columns[name][row])} is not True or False")
        collected.add(query, name, RIGHT[value], usd * TOKENS / 1e6)
