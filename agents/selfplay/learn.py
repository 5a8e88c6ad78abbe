"""What a round of self-play learns: drift, a table of all answers so far, a new agent.

N queries, K experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from agents.evaluation.evaluate import Result, clearly_above, episodes_for, evaluate
from agents.routers.policy import PolicyRouter
from agents.selfplay.context import (
    SelfPlay,
    all_experts_pairs,
    as_pairs,
    expert_versions,
    predict,
    read_references,
    training_queries,
)
from agents.selfplay.drift import detect_drift
from agents.selfplay.labelling import Pair, build_table
from agents.serving.orchestrator import Orchestrator
from agents.training.callbacks import VAL_QUERIES
from agents.training.config import TrainConfig
from agents.training.trainer import Trainer
from experts.grading import GRADERS
from experts.types import Answer, Query
from leeroo_env import ExpertTable, InputError
from leeroo_env.dynamics import budget_grid
from leeroo_env.files import read_json
from leeroo_env.table import TableInfo

OF_THE_PLAN = ("mlp_extractor.value", "mlp_extractor.cost_ratios")  # what the plan of a new table replaces


def live_score(selfplay: SelfPlay, pairs: Sequence[Pair]) -> dict[str, float]:
    """How the agent's own choices, some of them random, did on new queries: answers, mean score and mean cost."""
    came = [(query, answer) for query, name in pairs if (answer := selfplay.asker.found((query, name)))]
    scores = [GRADERS[selfplay.config.grader](answer.text, query).score for query, answer in came]
    n = max(len(came), 1)
    return {"answers": len(came), "score": sum(scores) / n, "cost_usd": sum(a.cost_usd for _, a in came) / n}


def measure_drift(selfplay: SelfPlay, number: int, pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """How each expert's answers of this round differ from what the last agent foretold; see `agents.selfplay.drift`.

    Questions that experts have settled are easier than others, so with these no rise counts. A fall may also come of an
    error that the others share.
    """
    if number == 0:
        return {}
    agent = Orchestrator.load(selfplay.directory(number - 1))
    came: dict[str, list[tuple[Query, Answer]]] = {name: [] for name in agent.experts}
    for query, name in pairs:
        if answer := selfplay.asker.found((query, name)):
            came[name].append((query, answer))
    flattered = bool(read_references(selfplay, number))
    found = {}
    for k, (name, answered) in enumerate(came.items()):
        estimates = predict(selfplay, agent, [query for query, _ in answered])
        scores = np.array([GRADERS[selfplay.config.grader](answer.text, query).score for query, answer in answered])
        costs_usd = np.array([answer.cost_usd for _, answer in answered])
        predicted = estimates.score[:, k].double().numpy(), estimates.cost_usd[:, k].double().numpy()
        found[name] = asdict(detect_drift(predicted, (scores, costs_usd), len(agent.experts), rises=not flattered))
    return found


def table_parts(
    selfplay: SelfPlay, number: int, changed: Sequence[str], held_out: Sequence[Query]
) -> tuple[TableInfo, pa.Table, pa.Table, np.ndarray]:
    """What a table directory holds of all answers up to this round: on held-out queries, then on training queries.

    Of an expert that changed only what it has answered since is left. Training queries that nobody has answered, and
    held-out ones that not everybody has, are left out.
    """
    since = expert_versions(selfplay, number) | {name: number for name in changed}
    answers: dict[tuple[str, str], Answer] = {}
    agreement: dict[str, float] = {}
    for earlier in range(number + 1):
        selfplay.asker.versions = expert_versions(selfplay, earlier)
        settled, asks = (read_json(selfplay.directory(earlier) / name) for name in ("references.json", "asks.json"))
        pairs = as_pairs(selfplay, earlier, settled["votes"] + asks["explore"] + asks["aim"])
        add_stored_answers(selfplay, pairs, answers, since, earlier)
        agreement |= {query_id: one["agreement"] for query_id, one in settled["references"].items()}
    selfplay.asker.versions = since
    add_stored_answers(selfplay, all_experts_pairs(selfplay, held_out), answers, since, number)
    count = Counter(query_id for query_id, _ in answers)
    complete = [query for query in held_out if count[query.query_id] == len(selfplay.asker.specs)]
    some = [query for query in training_queries(selfplay, number + 1) if count[query.query_id]]
    if held_out and not complete:
        raise InputError(
            f"{selfplay.config.run_dir}: no {held_out[0].split} query has every expert's answer (calls fail, or "
            "--usd-to-begin is too little); the same command asks again"
        )
    kept = {query.query_id for query in complete + some}
    answers = {pair: answer for pair, answer in answers.items() if pair[0] in kept}
    name = f"{selfplay.config.run_dir.name}-{number}"
    return build_table(
        name, selfplay.asker.pool, complete + some, answers, selfplay.config.grader, selfplay.encoder, agreement
    )


def add_stored_answers(
    selfplay: SelfPlay,
    pairs: Sequence[Pair],
    answers: dict[tuple[str, str], Answer],
    since: dict[str, int],
    number: int,
) -> None:
    """Adds what the store has of these pairs, unless the expert has changed since."""
    for query, name in pairs:
        answer = selfplay.asker.found((query, name))
        if answer is not None and number >= since.get(name, 0):
            answers[query.query_id, name] = answer


def coverage(table: ExpertTable, seen: Tensor) -> dict[str, dict[str, int]]:
    """Training answers by domain and expert."""
    domain = np.array(table.queries["domain"].to_pylist())
    train = (table.split == 0).numpy()
    return {
        name: dict(
            zip(table.experts, seen[torch.from_numpy(train & (domain == name))].sum(dim=0).tolist(), strict=True)
        )
        for name in sorted(set(domain[train].tolist()))
    }


def learn(selfplay: SelfPlay, number: int, table: ExpertTable) -> dict[str, Any]:
    """Fits estimates and plan anew, trains the last round's policy on, and keeps what val says is not worse.

    Args:
        table: with what is missing filled in.
    """
    config, directory = selfplay.config, selfplay.directory(number)
    horizon = min(config.horizon, len(table.rows("val")), len(table.rows("train")))
    trainer = Trainer(TrainConfig(horizon=horizon, seed=config.seed), table)
    trainer.prepare()
    val_rules = trainer.held_out_rules("val")
    priced = replace(val_rules, cost_scale=table.cost_scale("val"))
    budgets = read_json(selfplay.directory(0) / "round.json")["budgets_usd"] if number else budget_grid(priced)
    policy = trainer.model.policy
    last = Orchestrator.load(selfplay.directory(number - 1)) if number else None
    if last is not None:
        weights = {name: x for name, x in last.policy.state_dict().items() if name not in OF_THE_PLAN}
        policy.load_state_dict(policy.state_dict() | weights)

    def play(router: PolicyRouter) -> Result:
        return evaluate(router, val_rules, budgets, episodes_for(val_rules, VAL_QUERIES), config.seed)

    start = {name: x.clone() for name, x in policy.state_dict().items()}
    best = play(trainer.router)
    trainer.learn(config.timesteps)
    trained = play(trainer.router)
    if better := clearly_above(trained, best):
        best = trained
    else:
        policy.load_state_dict(start)
    before = play(last.router(table)) if last is not None else None
    kept = before is None or not clearly_above(before, best)
    trainer.save(directory)
    if last is not None and not kept:
        last.save(directory)
    return {
        "budgets_usd": budgets,
        "val": {"score": best.score.tolist(), "cost_usd": best.cost_usd.tolist(), "mean": best.mean_score},
        "val_before": None if before is None else before.mean_score,
        "training_helped": better,
        "kept": kept,
    }
