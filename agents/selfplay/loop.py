"""The self-play loop: writes queries, votes on references, asks the experts that pay, learns; round after round.

    python -m agents.selfplay --rounds 3 --usd-per-round 0.012 --run-dir runs/mine

The same command resumes a run that was stopped at any point, and asks nothing again but the calls that were in flight
when it was killed, and those that failed. The method follows the
Leeroo Orchestrator (arXiv 2401.13979), whose generation, orchestration and evaluation make its own training data.

    RUN_DIR/store/              every answer, and what failed calls were billed, see `experts.collect.store`
    RUN_DIR/rounds/NNN/         queries.jsonl, voters.json and asks.json, written before asking; references.json, the
                                result of the votes; table/ (all answers so far), policy/ (for `Orchestrator.load`), and
                                round.json, written last; see `agents.selfplay.records`
    RUN_DIR/report.md           the held-out score by dollars spent
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import tyro

from agents.estimators.impute import fill_missing, partial_table
from agents.evaluation.evaluate import evaluate, lead
from agents.selfplay.config import Config, check_config, check_pools, start_or_resume
from agents.selfplay.context import SelfPlay, make_encoder, make_writers, of_split, seed_queries
from agents.selfplay.drift import measure_drift
from agents.selfplay.generate import load_or_choose_pairs, load_or_write_queries
from agents.selfplay.labelling import Asker, graded_answers, live_score
from agents.selfplay.learn import learn
from agents.selfplay.records import FinalTest, Round
from agents.selfplay.report import describe, log_round, total_usd, write_selfplay_report
from agents.selfplay.table import coverage, table_parts
from agents.selfplay.voting import agreement_summary, load_or_find_references, query_counts
from experts.cluster.connect import connect
from experts.collect.store import open_store
from experts.pool import load_pool
from experts.types import TextEncoder
from leeroo_env.cli import exit_code
from leeroo_env.dynamics import make_rules
from leeroo_env.table import write_table
from leeroo_env.threads import set_threads


def main(arguments: Sequence[str] | None = None, prog: str = "python -m agents.selfplay") -> int:
    """The command line. Returns the exit code: 0, 2 for bad input, 130 for an interrupted run."""

    def work() -> int:
        run(tyro.cli(Config, prog=prog, args=arguments, description=__doc__))
        return 0

    return exit_code(work, "the same command goes on")


def run(config: Config, encoder: TextEncoder | None = None) -> list[Round]:
    """Plays the rounds that are missing, writes the report, and returns all rounds.

    Args:
        encoder: embeds the queries; None: the one that the configuration names.

    Raises:
        InputError: the settings make no sense (nothing is written then), or answers are missing.
    """
    check_config(config)
    set_threads(max(1, config.threads))
    held_out, start = seed_queries(config)
    pool = load_pool(config.pool)
    writer_pool = load_pool(config.writer_pool) if config.writer_pool else pool
    check_pools(config, pool, writer_pool)
    with ExitStack() as stack:
        store = stack.enter_context(open_store(config.run_dir / "store"))
        cluster = None
        if config.engine == "ray":
            cluster = stack.enter_context(connect(config.address, max(1, config.threads)))
        asker = Asker(pool, store, cluster)
        writers = make_writers(config, asker, writer_pool, start)
        selfplay = SelfPlay(config, asker, writers, encoder or make_encoder(config), held_out, start)
        start_or_resume(config)
        for number in range(config.rounds + 1):
            play_round(selfplay, number)
        notes = f"Answers were chosen by `--ask {config.ask}`, seed {config.seed}; `config.yaml` has all settings."
        write_selfplay_report(config.run_dir, selfplay.rounds, None, notes)  # on val, in case that test fails
        write_selfplay_report(config.run_dir, selfplay.rounds, load_or_evaluate(selfplay), notes)
    print(f"report: {config.run_dir / 'report.md'}")
    return selfplay.rounds


def play_round(selfplay: SelfPlay, number: int) -> None:
    """Plays a round if it is not finished, and adds it to `selfplay.rounds`."""
    path = selfplay.directory(number) / "round.json"
    finished = path.exists()
    if not finished:
        find_new_agent(selfplay, number).write(path)
    selfplay.rounds.append(Round.read(path))
    if not finished:
        log_round(selfplay.config.run_dir, selfplay.rounds[-1], total_usd(selfplay.rounds)[-1])
        print(describe(selfplay.rounds[-1]), flush=True)


def find_new_agent(selfplay: SelfPlay, number: int) -> Round:
    """One round: writes queries, votes, asks, learns. Steps that were finished before a stop are not done again."""
    config, asker = selfplay.config, selfplay.asker
    asker.versions = selfplay.expert_versions(number)

    queries, written = load_or_write_queries(selfplay, number)
    left_usd = config.usd_per_round - written.cost_usd if number else config.usd_to_begin
    voting = load_or_find_references(selfplay, number, queries, left_usd)
    left_usd = max(left_usd - voting.spent_usd, 0.0)

    chosen = load_or_choose_pairs(selfplay, number, left_usd)
    votes = set(voting.votes)
    new = [pair for pair in chosen.explore + chosen.aim if pair not in votes]
    spent_usd = voting.spent_usd + asker.ask(selfplay.as_pairs(number, new), left_usd, f"round {number}: choices")
    answered = len(votes) + sum(asker.found(pair) is not None for pair in selfplay.as_pairs(number, new))

    drift = measure_drift(
        selfplay, number, graded_answers(asker, selfplay.as_pairs(number, voting.votes + new), config.grader)
    )
    changed = [name for name, found in drift.items() if found.changed]
    explored = live_score(graded_answers(asker, selfplay.as_pairs(number, chosen.explore), config.grader))
    measured_usd = ask_validation(selfplay, number, changed, spent_usd)

    parts = table_parts(selfplay, number, changed, of_split(selfplay.held_out, "val"))
    write_table(selfplay.directory(number) / "table", *parts, checked=True)
    table, seen = partial_table(*parts)
    learned = learn(selfplay, number, fill_missing(table, seen, config.seed))
    return Round(
        round=number,
        spent_usd=spent_usd + written.cost_usd,
        writing_usd=written.cost_usd,
        votes_usd=voting.spent_usd,
        measured_usd=measured_usd,
        written=query_counts(written, voting, len(selfplay.usable_queries(number))),
        agreement=agreement_summary(voting),
        answered=answered,
        explored=explored,
        answers=dict(zip(table.experts, seen[table.split == 0].sum(dim=0).tolist(), strict=True)),
        coverage=coverage(table, seen),
        drift=drift,
        changed=changed,
        **dict(learned),
    )


def ask_validation(selfplay: SelfPlay, number: int, changed: list[str], spent_usd: float) -> float:
    """Asks experts about val: all of them in round 0, later those that have changed. Returns the cost.

    Args:
        spent_usd: cost of this round's training answers.
    """
    asker = selfplay.asker
    asker.versions |= {name: number for name in changed}
    experts = changed if number else list(asker.specs)
    pairs = [pair for pair in selfplay.all_experts_pairs(of_split(selfplay.held_out, "val")) if pair[1] in experts]
    limit_usd = evaluation_usd(selfplay) if number else selfplay.config.usd_to_begin - spent_usd
    return asker.ask(pairs, limit_usd, f"round {number}: val")


def evaluation_usd(selfplay: SelfPlay) -> float:
    """What the finished rounds have left of the dollars for the first answers, val and test."""
    rounds = selfplay.rounds
    return selfplay.config.usd_to_begin - rounds[0].spent_usd - sum(one.measured_usd for one in rounds)


def load_or_evaluate(selfplay: SelfPlay) -> FinalTest | None:
    """Evaluates the agents of all rounds on test, after all choices were made; None where there is no test split."""
    test, rounds, seed = of_split(selfplay.held_out, "test"), selfplay.rounds, selfplay.config.seed
    if not test:
        return None
    path = selfplay.config.run_dir / "test.json"
    if path.exists() and len((stored := FinalTest.read(path)).score) == len(rounds):
        return stored
    selfplay.asker.versions = selfplay.expert_versions(len(rounds))
    measured_usd = selfplay.asker.ask(selfplay.all_experts_pairs(test), evaluation_usd(selfplay), "test")
    table, seen = partial_table(*table_parts(selfplay, len(rounds) - 1, rounds[-1].changed, test))
    table = fill_missing(table, seen, seed)
    rules = make_rules(table, "test", min(selfplay.config.horizon, len(table.rows("test"))))
    routers = (selfplay.agent(number).router(table) for number in range(len(rounds)))
    results = [evaluate(router, rules, rounds[0].budgets_usd, seed=seed) for router in routers]
    final = FinalTest(
        measured_usd=measured_usd,
        score=[result.score.tolist() for result in results],
        mean=[result.mean_score for result in results],
        stderr=[lead(result, results[0])[3] for result in results],
    )
    final.write(path)
    return final
