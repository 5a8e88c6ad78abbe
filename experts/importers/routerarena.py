"""Imports RouterArena's graded answers: a file for each model, or the prediction file of a router."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import tyro

from experts.data.fields import text_of
from experts.data.readers import read_jsonl
from experts.importers.base import Imported, Output, check_tokens, number_in, read_list, storable, write_imported
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertInfo, ExpertTable


class Answer(NamedTuple):
    """What both kinds of file say of an answer."""

    query_id: Any
    text: Any
    model: Any
    success: Any
    tokens: Any
    output: Any
    score: Any
    cost: Any


def import_routerarena(
    files: tyro.conf.Positional[list[Path]], output: Output, models: str = "", outputs: bool = False
) -> ExpertTable:
    """RouterArena (RouteWorks/RouterArena): cached_results/*.jsonl, or router_inference/predictions/*.json, evaluated.

    Its rules allow evaluation only, so that all queries become the test split: nothing can be trained on the table. A
    line of cached_results has global_index, question, llm_selected, token_usage, success and evaluation_result (score,
    inference_cost); a prediction has global index, prompt, prediction, generated_result, accuracy and cost. Scores may
    be anything from 0 to 1. Answers that failed or have no score yet are left out (RouterArena publishes the references
    of its split sub_10 only; llm_evaluation/run.py grades), as are queries that a model lacks. The domain of a query is
    its data set.

    Args:
        files: the .jsonl or .json files.
        models: names of the models, separated by commas; all if empty.
        outputs: keep the models' outputs in the table.
    """
    wanted = [name.strip() for name in models.split(",") if name.strip()]
    collected, seen = Imported(), set[tuple[str, str]]()
    for file in files:
        records = read_jsonl(file) if file.suffix == ".jsonl" else read_list(file, "predictions")
        for row, record in enumerate(records):
            answer = _answer(record)
            if not wanted or answer.model in wanted:
                _add(collected, seen, f"{file}: row {row}", answer, outputs)
    names = wanted or sorted({name for _, name in seen})
    if missing := [name for name in names if name not in {model for _, model in seen}]:
        raise InputError(f"--models: the files have no graded answers of {missing[0]!r}")
    if not seen:
        raise InputError(f"{', '.join(map(str, files))}: no answer has a score")
    description = f"RouterArena's answers of {len(names)} language models; by its rules for evaluation only"
    return write_imported(
        output, description, [ExpertInfo(name=name) for name in names], collected, list(collected.queries)
    )


def _answer(record: Any) -> Answer:
    fields = _fields(record)
    query_id = fields.get("global_index", fields.get("global index"))
    if "llm_selected" in fields:
        text, model, call, graded = (
            fields.get("question"),
            fields["llm_selected"],
            fields,
            fields.get("evaluation_result"),
        )
        score, cost = _fields(graded).get("score"), _fields(graded).get("inference_cost")
    else:
        text, model, call = fields.get("prompt"), fields.get("prediction"), _fields(fields.get("generated_result"))
        score, cost = fields.get("accuracy"), fields.get("cost")
    done = (call.get("success"), call.get("token_usage"), call.get("generated_answer"))
    return Answer(query_id, text, model, *done, score, cost)


def _fields(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _add(collected: Imported, seen: set[tuple[str, str]], where: str, answer: Answer, outputs: bool) -> None:
    """Adds an answer, unless it failed, has no score, or is of another wording or there already."""
    if not all(isinstance(x, str) and x for x in (answer.query_id, answer.text, answer.model)):
        raise InputError(f"{where}: needs global_index, llm_selected and question, or prediction and prompt")
    if not answer.success:
        return collected.leave_out("failed calls")
    if answer.score is None:
        return collected.leave_out("answers without a score")
    text = text_of(storable(answer.text), f"{where}: field question or prompt")
    query = Query(answer.query_id, text, answer.query_id.rpartition("_")[0] or answer.query_id, split="test")
    if collected.queries.setdefault(query.query_id, query).text != text:
        return collected.leave_out("answers to another wording of a question")
    if (query.query_id, answer.model) in seen:
        return collected.leave_out("repeated answers")
    seen.add((query.query_id, answer.model))
    usage = _fields(answer.tokens)
    tokens = {"prompt_tokens": usage.get("input_tokens"), "completion_tokens": usage.get("output_tokens")}
    check_tokens(tokens, f"{where}:")
    score, cost_usd = number_in(answer.score, f"{where}: score", 1.0), number_in(answer.cost, f"{where}: cost")
    text_kept = storable(answer.output) if outputs and isinstance(answer.output, str) else None
    collected.add(query, answer.model, score, cost_usd, **tokens, output=text_kept)
