"""The self-play loop: write queries, let the agent and the aim choose whom to ask, grade, learn; round after round.

    python -m agents.selfplay --rounds 3 --usd-per-round 0.012 --run-dir runs/mine

The same command goes on with a run that was stopped at any point, and pays for no answer twice. The method follows the
Leeroo Orchestrator (arXiv 2401.13979), whose generation, orchestration and evaluation make its own training data.

    RUN_DIR/store/              every answer that was paid for, see `experts.collect.store`
    RUN_DIR/rounds/NNN/         queries.jsonl, voters.json and asks.json, written before asking; references.json, what
                                the experts agreed on; table/ (all answers so far), policy/ (for `Orchestrator.load`),
                                and round.json, with which a round has ended
    RUN_DIR/report.md           how much was learnt for how much money
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import tyro

from agents.estimators.impute import fill_missing, partial_table
from agents.evaluation.evaluate import evaluate, lead
from agents.selfplay.context import (
    Config,
    SelfPlay,
    all_experts_pairs,
    as_pairs,
    check,
    check_pools,
    expert_versions,
    finished_rounds,
    make_encoder,
    make_writers,
    part,
    seed_queries,
    start_or_resume,
    usable_queries,
)
from agents.selfplay.generate import load_or_choose_pairs, load_or_write_queries
from agents.selfplay.labelling import Asker
from agents.selfplay.learn import coverage, learn, live_score, measure_drift, table_parts
from agents.selfplay.report import log_round, total, write_selfplay_report
from agents.selfplay.voting import agreement_summary, find_references, query_counts
from agents.serving.orchestrator import Orchestrator
from experts.collect.store import open_store
from experts.pool import load_pool
from experts.types import TextEncoder
from leeroo_env.cli import exit_code
from leeroo_env.dynamics import make_rules
from leeroo_env.files import read_json, write_json
from leeroo_env.table import write_table


def main(arguments: Sequence[str] | None = None, prog: str = "python -m agents.selfplay") -> int:
    """The command line. Returns the exit code: 0, 2 for bad input, 130 for an interrupted run."""

    def work() -> int:
        run(tyro.cli(Config, prog=prog, args=arguments, description=__doc__))
        return 0

    return exit_code(work, "the same command goes on")


def run(config: Config, encoder: TextEncoder | None = None) -> list[dict[str, Any]]:
    """Plays the rounds that are still to be played, writes the report, and returns the rounds' numbers.

    Args:
        encoder: embeds the queries; None: the one that the configuration names.

    Raises:
        InputError: before anything is written where the settings make no sense; also, for lack of answers, later.
    """
    check(config)
    torch.set_num_threads(max(1, config.threads))
    held_out, start = seed_queries(config)
    pool = load_pool(config.pool)
    writer_pool = load_pool(config.writer_pool) if config.writer_pool else pool
    check_pools(config, pool, writer_pool)
    with ExitStack() as stack:
        asker = Asker(pool, stack.enter_context(open_store(config.run_dir / "store")))
        writers = make_writers(config, asker, writer_pool, start)
        selfplay = SelfPlay(config, asker, writers, encoder or make_encoder(config), held_out, start)
        start_or_resume(config)
        for number in range(config.rounds + 1):
            if not (selfplay.directory(number) / "round.json").exists():
                play_round(selfplay, number)
                rounds = finished_rounds(selfplay, number + 1)
                log_round(config.run_dir, rounds[-1], total(rounds)[-1])
                print(describe(rounds[-1]), flush=True)
        rounds = finished_rounds(selfplay, config.rounds + 1)
        notes = f"Answers were chosen by `--ask {config.ask}`, seed {config.seed}; `config.yaml` has all settings."
        write_selfplay_report(config.run_dir, rounds, {}, notes)  # on val, in case that test cannot be asked now
        write_selfplay_report(config.run_dir, rounds, evaluate_agents(selfplay, rounds), notes)
    print(f"report: {config.run_dir / 'report.md'}")
    return rounds


def play_round(selfplay: SelfPlay, number: int) -> None:
    """One round: write, find references, choose, ask, learn. What was done before a stop is not done again."""
    directory, config = selfplay.directory(number), selfplay.config
    selfplay.asker.versions = expert_versions(selfplay, number)
    queries, written = load_or_write_queries(selfplay, number)
    limit_usd = config.usd_per_round - written["cost_usd"] if number else config.usd_to_begin
    settled = find_references(selfplay, number, queries, limit_usd)
    limit_usd = max(limit_usd - settled["spent_usd"], 0.0)
    asks = load_or_choose_pairs(selfplay, number, limit_usd)
    votes = {(query_id, name) for query_id, name in settled["votes"]}
    chosen = [pair for pair in asks["explore"] + asks["aim"] if tuple(pair) not in votes]
    spent_usd = settled["spent_usd"] + selfplay.asker.ask(as_pairs(selfplay, number, chosen), limit_usd)
    pairs = as_pairs(selfplay, number, settled["votes"] + chosen)
    answered = len(votes) + sum(selfplay.asker.found(pair) is not None for pair in as_pairs(selfplay, number, chosen))
    drift = measure_drift(selfplay, number, pairs)
    changed = [name for name, found in drift.items() if found["changed"]]
    explored = live_score(selfplay, as_pairs(selfplay, number, asks["explore"]))
    measured_usd = ask_validation(selfplay, number, changed, spent_usd)
    parts = table_parts(selfplay, number, changed, part(selfplay.held_out, "val"))
    write_table(directory / "table", *parts, checked=True)
    table, seen = partial_table(*parts)
    outcome = learn(selfplay, number, fill_missing(table, seen, config.seed))
    numbers = {
        "round": number,
        "spent_usd": spent_usd + written["cost_usd"],
        "writing_usd": written["cost_usd"],
        "votes_usd": settled["spent_usd"],
        "measured_usd": measured_usd,
        "written": query_counts(written, settled, len(usable_queries(selfplay, number))),
        "agreement": agreement_summary(settled),
        "answered": answered,
        "explored": explored,
        "answers": dict(zip(table.experts, seen[table.split == 0].sum(dim=0).tolist(), strict=True)),
        "coverage": coverage(table, seen),
        "drift": drift,
        "changed": changed,
        **outcome,
    }
    write_json(directory / "round.json", numbers)


def ask_validation(selfplay: SelfPlay, number: int, changed: list[str], spent_usd: float) -> float:
    """Asks those about val whose answers on it are missing or old, for dollars.

    Args:
        spent_usd: what the training answers of this round have cost.
    """
    selfplay.asker.versions |= {name: number for name in changed}
    again = changed if number else list(selfplay.asker.specs)
    on_val = [pair for pair in all_experts_pairs(selfplay, part(selfplay.held_out, "val")) if pair[1] in again]
    left_usd = evaluation_usd_left(selfplay, number) if number else selfplay.config.usd_to_begin - spent_usd
    return selfplay.asker.ask(on_val, left_usd)


def evaluation_usd_left(selfplay: SelfPlay, number: int) -> float:
    """What the rounds before have left of the dollars for the first answers, val and test."""
    rounds = finished_rounds(selfplay, number)
    return selfplay.config.usd_to_begin - rounds[0]["spent_usd"] - sum(one["measured_usd"] for one in rounds)


def evaluate_agents(selfplay: SelfPlay, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """How the agent of every round does on test, after all choices were made; empty where there is no test split."""
    if not part(selfplay.held_out, "test"):
        return {}
    path = selfplay.config.run_dir / "test.json"
    if path.exists() and len(read_json(path)["score"]) == len(rounds):
        return read_json(path)
    number = len(rounds) - 1
    selfplay.asker.versions = expert_versions(selfplay, len(rounds))
    measured_usd = selfplay.asker.ask(
        all_experts_pairs(selfplay, part(selfplay.held_out, "test")), evaluation_usd_left(selfplay, len(rounds))
    )
    table, seen = partial_table(*table_parts(selfplay, number, rounds[-1]["changed"], part(selfplay.held_out, "test")))
    table = fill_missing(table, seen, selfplay.config.seed)
    rules = make_rules(table, "test", min(selfplay.config.horizon, len(table.rows("test"))))
    results = []
    for earlier in range(len(rounds)):
        router = Orchestrator.load(selfplay.directory(earlier)).router(table)
        results.append(evaluate(router, rules, rounds[0]["budgets_usd"], seed=selfplay.config.seed))
    told = {
        "measured_usd": measured_usd,
        "score": [result.score.tolist() for result in results],
        "mean": [result.mean_score for result in results],
        "stderr": [lead(result, results[0])[3] for result in results],
    }
    write_json(path, told)
    return told


def describe(numbers: dict[str, Any]) -> str:
    """One line for people."""
    changed = f", changed: {', '.join(numbers['changed'])}" if numbers["changed"] else ""
    return (
        f"round {numbers['round']}: ${numbers['spent_usd']:.6f} for {numbers['answered']} answers, "
        f"val {numbers['val']['mean']:.4f}{'' if numbers['kept'] else ' (last agent kept)'}{changed}"
    )
