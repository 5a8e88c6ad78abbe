"""The self-play loop: write queries, let the agent and the aim choose whom to ask, grade, learn; round after round.

    python -m agents.selfplay --rounds 3 --usd-per-round 0.012 --run-dir runs/mine

The same command goes on with a run that was stopped at any point, and pays for no answer twice. The method follows the
Leeroo Orchestrator (arXiv 2401.13979), whose generation, orchestration and evaluation make its own training data.

    RUN_DIR/store/              every answer that was paid for, see `experts.store`
    RUN_DIR/rounds/NNN/         queries.jsonl and asks.json, written before asking; table/ (all answers so far), policy/
                                (for `Orchestrator.load`), and round.json, with which a round has ended
    RUN_DIR/report.md           how much was learnt for how much money
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
import tyro
from torch import Tensor

import experts.tiny
from agents.aim import draw_domains, draw_pairs, worth_asking
from agents.ask_pairs import Asker, Pair, table_of
from agents.asking_policy import begin_as_plan
from agents.bid_price import BidPricePolicy, table_of_estimates
from agents.drift import find_drift
from agents.evaluate import Result, evaluate, lead
from agents.files import read_json, write_json, write_tensors, write_text
from agents.missing import fill_missing, partial_table
from agents.model import make_model
from agents.orchestrator import Orchestrator
from agents.policy import PolicyRouter, describe_policy, save_policy
from agents.predictor import estimates_of, fit_predictor
from agents.run_dir import begin_run, read_settings
from agents.selfplay_report import log_round, total, write_selfplay_report
from experts.collect import QueryEncoder
from experts.expert import Answer, Query
from experts.grading import GRADERS
from experts.pool import keys_for, load_pool
from experts.queries import load_queries
from experts.questions import GymWriter, ModelWriter, TaskWriter, Writer, Written, writing_expert
from experts.sieve import Sieve
from experts.store import StoredExpert, open_store
from leeroo_env import ExpertTable, InputError
from leeroo_env.builtin import DEFAULT, resolve
from leeroo_env.dynamics import COST_WEIGHT, HORIZON, budget_grid, make_rules, price_range
from leeroo_env.table import TableInfo, hash_split, write_table

TINY_POOL = Path(experts.tiny.__file__).parent / "pool.yaml"
WARM_UP = 0.2  # of the training only the value is learnt
VAL_QUERIES = 8_192
MAX_WRITING = 3  # times that the writer is asked for what the sieve has left too few of
OF_THE_PLAN = ("mlp_extractor.value", "mlp_extractor.cost_ratios")  # what the plan of a new table replaces


@dataclass(frozen=True)
class Config:
    """Makes an agent's training data by self-play: new queries, asked where it pays, graded, learnt from."""

    pool: Path = TINY_POOL
    """pool.yaml; the tiny models that ship by default"""
    seed_queries: str = ""
    """file of the queries to begin with, val and test among them; those of the shipped table if empty"""
    start: int = 300
    """training queries of these that all experts are asked first, drawn at random; 0 takes all"""
    rounds: int = 3
    """rounds to play; a run that has ended goes on when there are more"""
    usd_per_round: float = 0.012
    """the most that a round's writing and answers may cost, in dollars"""
    usd_to_begin: float = math.inf
    """the most that the first answers may cost: the start, and val and test, with which the agents are compared"""
    queries_per_round: int = 600
    """new queries to write; about three times as many as the money would pay for if all experts were asked"""
    ask: Literal["aimed", "all"] = "aimed"
    """aimed: the agent's choices and where answers are worth their cost; all: every expert, query by query"""
    explore: float = 0.2
    """share of a round's money with which the agent answers new queries as it would in use"""
    epsilon: float = 0.1
    """chance that it then asks a random expert instead"""
    writer: str = "tasks"
    """tasks: programs for the tiny models; reasoning-gym; or the pool's expert that writes and says the answers"""
    grader: str = "exact"
    """multiple-choice, number, exact or math"""
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """the model that embeds the queries"""
    horizon: int = HORIZON
    """queries in an episode: what one budget has to last for"""
    timesteps: int = 50_000
    """queries to route in each round's training"""
    seed: int = 0
    """decides everything that is random"""
    threads: int = 1
    """threads of torch"""
    run_dir: Path = Path("runs/selfplay")
    """where the run is written, or goes on"""


@dataclass(frozen=True)
class Game:
    """What a run plays with.

    Attributes:
        held_out: the queries of val, then those of test.
        start: the training queries that it begins with.
    """

    config: Config
    asker: Asker
    writer: Writer
    encoder: QueryEncoder
    held_out: list[Query]
    start: list[Query]

    def directory(self, number: int) -> Path:
        return self.config.run_dir / "rounds" / f"{number:03d}"

    def rng(self, number: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, number, purpose])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 2 for bad input, 130 for an interrupted run."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    config = tyro.cli(Config, args=arguments, description=__doc__)
    try:
        run(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def run(config: Config, encoder: QueryEncoder | None = None) -> list[dict[str, Any]]:
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
    begin_or_go_on(config)
    with ExitStack() as stack:
        asker = Asker(pool, stack.enter_context(open_store(config.run_dir / "store")))
        game = Game(config, asker, make_writer(config, asker, start), encoder or make_encoder(config), held_out, start)
        for number in range(config.rounds + 1):
            if not (game.directory(number) / "round.json").exists():
                play_round(game, number)
                rounds = ended_rounds(game, number + 1)
                log_round(config.run_dir, rounds[-1], total(rounds)[-1])
                print(describe(rounds[-1]), flush=True)
        rounds = ended_rounds(game, config.rounds + 1)
        test = examine(game, rounds)
    notes = f"Answers were chosen by `--ask {config.ask}`, seed {config.seed}; `config.yaml` has all settings."
    write_selfplay_report(config.run_dir, rounds, test, notes)
    print(f"report: {config.run_dir / 'report.md'}")
    return rounds


def play_round(game: Game, number: int) -> None:
    """One round: write, choose, ask, learn. What was done of it before the process was stopped is not done again."""
    directory = game.directory(number)
    game.asker.era = eras(game, number)
    queries, written = new_queries(game, number)
    asks = chosen_pairs(game, number, queries, written)
    limit_usd = game.config.usd_per_round - written["cost_usd"] if number else game.config.usd_to_begin
    pairs = pairs_of(game, number, asks["explore"] + asks["aim"])
    spent_usd = game.asker.ask(pairs, max(limit_usd, 0.0))
    answered = sum(game.asker.found(pair) is not None for pair in pairs)
    drift = drifts(game, number, pairs)
    changed = [name for name, found in drift.items() if found["changed"]]
    game.asker.era |= {name: number for name in changed}
    left_usd = game.config.usd_to_begin - (0 if number else spent_usd)
    again = changed if number else list(game.asker.specs)  # whose answers on val there are none of, or old ones
    measured_usd = game.asker.ask(
        [pair for pair in everyone(game, part(game.held_out, "val")) if pair[1] in again], left_usd
    )
    parts = answers_so_far(game, number, changed, part(game.held_out, "val"))
    write_table(directory / "table", *parts, checked=True)
    table, seen = partial_table(*parts)
    outcome = learn(game, number, fill_missing(table, seen, game.config.seed))
    numbers = {
        "round": number,
        "spent_usd": spent_usd + written["cost_usd"],
        "writing_usd": written["cost_usd"],
        "measured_usd": measured_usd,
        "written": written,
        "answered": answered,
        "answers": dict(zip(table.experts, seen[table.split == 0].sum(dim=0).tolist(), strict=True)),
        "coverage": coverage(table, seen),
        "drift": drift,
        "changed": changed,
        **outcome,
    }
    write_json(directory / "round.json", numbers)


# ---------------------------------------------------------------------------------------------------------------------
# What is played with


def check(config: Config) -> None:
    if min(config.start, config.timesteps, config.seed) < 0 or min(config.queries_per_round, config.horizon) < 1:
        raise InputError("start, timesteps and seed must be 0 or more, queries_per_round and horizon 1 or more")
    if config.rounds < 0 or not config.usd_per_round > 0 or not config.usd_to_begin > 0:
        raise InputError(f"rounds {config.rounds}: must be 0 or more; dollars must be above 0")
    if not (0 <= config.explore <= 1 and 0 <= config.epsilon <= 1):
        raise InputError(f"explore {config.explore}, epsilon {config.epsilon}: must be 0 to 1")
    if config.grader not in GRADERS:
        raise InputError(f"grader: {config.grader!r} is none of {', '.join(GRADERS)}")


def begin_or_go_on(config: Config) -> None:
    """Writes down the settings of a new run. One that is there goes on with the same ones, but for more rounds."""
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()}
    free = ("rounds", "threads", "run_dir")
    if not (config.run_dir / "config.yaml").exists():
        begin_run(config.run_dir, settings)
        return
    began_with = read_settings(config.run_dir)
    for name, value in settings.items():
        if name not in free and began_with.get(name) != value:
            raise InputError(
                f"{config.run_dir}: began with {name} {began_with.get(name)!r} and goes on with it, not {value!r}; "
                "name another --run-dir"
            )


def seed_queries(config: Config) -> tuple[list[Query], list[Query]]:
    """The queries of val and test, and the training queries to begin with."""
    if config.seed_queries:
        given = load_queries(config.seed_queries)
    else:
        table = resolve(DEFAULT)
        names = ("query_id", "text", "domain", "reference")
        splits = [("train", "val", "test")[i] for i in table.split.tolist()]
        rows = zip(table.queries.select(names).to_pylist(), splits, strict=True)
        given = [Query(**row, split=split) for row, split in rows]
    queries = [replace(query, split=query.split or hash_split(query.query_id)) for query in given]
    for query in queries:
        if not query.reference:
            raise InputError(f"seed_queries: query {query.query_id!r} has no reference to grade against")
    train = part(queries, "train")
    if len(train) < 2 or not part(queries, "val"):
        raise InputError(f"seed_queries: {len(train)} of train, {len(part(queries, 'val'))} of val; needs 2 and 1")
    if config.start:
        drawn = np.random.default_rng([config.seed, 0, 0]).permutation(len(train))[: config.start]
        train = [train[i] for i in sorted(drawn.tolist())]
    return part(queries, "val") + part(queries, "test"), train


def make_encoder(config: Config) -> QueryEncoder:
    from experts.encoder import Encoder

    return Encoder(config.encoder)


def make_writer(config: Config, asker: Asker, start: list[Query]) -> Writer:
    """Raises InputError where there is none of that name."""
    if config.writer == "tasks":
        return TaskWriter()
    if config.writer == "reasoning-gym":
        return GymWriter()
    (spec,) = asker.pool.select([config.writer])
    expert: Any = writing_expert(spec, asker.purse, seed=config.seed)
    return ModelWriter(StoredExpert(expert, keys_for(expert.spec), asker.store), start, trusted=True)


def ended_rounds(game: Game, n: int) -> list[dict[str, Any]]:
    """The numbers of the first n."""
    return [read_json(game.directory(number) / "round.json") for number in range(n)]


def part(queries: Sequence[Query], split: str) -> list[Query]:
    return [query for query in queries if query.split == split]


# ---------------------------------------------------------------------------------------------------------------------
# What a round writes and asks


def new_queries(game: Game, number: int) -> tuple[list[Query], dict[str, Any]]:
    """The queries of a round, and what became of those written: kept, dropped by reason, dollars."""
    directory = game.directory(number)
    if (directory / "queries.jsonl").exists():
        return read_queries(game, number), read_json(directory / "written.json")
    queries, written = (game.start, Written()) if number == 0 else write_queries(game, number)
    told = {"kept": len(queries), "dropped": dict(written.dropped), "cost_usd": written.cost_usd}
    write_json(directory / "written.json", told)
    lines = [json.dumps(asdict(query), ensure_ascii=False) for query in queries]
    write_text(directory / "queries.jsonl", "".join(f"{line}\n" for line in lines))
    return queries, told


def read_queries(game: Game, number: int) -> list[Query]:
    path = game.directory(number) / "queries.jsonl"
    try:
        return [Query(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def write_queries(game: Game, number: int) -> tuple[list[Query], Written]:
    """Has queries written, more for domains whose answers are worth asking for, until enough of each pass the sieve."""
    rng, total = game.rng(number, 1), Written()
    known = training_queries(game, number)
    sieve = Sieve(game.encoder, [q.text for q in game.held_out], [q.text for q in known])
    game.asker.purse.max_usd = game.asker.purse.spent_usd + game.config.usd_per_round
    worth = torch.ones(len(known), 1)
    if game.config.ask == "aimed":
        agent = Orchestrator.load(game.directory(number - 1))
        worth = worth_asking(foretell(game, agent, known), plan_of(agent), middle(game))
    domains = game.writer.domains
    wanted = draw_domains(domains, [q.domain for q in known], worth, game.config.queries_per_round, rng)
    for _ in range(MAX_WRITING):
        kept = Counter(query.domain for query in total.queries)
        for domain, n in wanted.items():
            if n > kept[domain]:
                written = game.writer.write(n - kept[domain], domain, rng)
                graded = [query for query in written.queries if query.reference]
                sifted = sieve.sift(graded)
                total.queries += [replace(query, split="train") for query in sifted.queries]
                total.dropped += written.dropped + sifted.dropped
                total.dropped["no reference"] += len(written.queries) - len(graded)
                total.cost_usd += written.cost_usd
    return total.queries, total


def training_queries(game: Game, number: int) -> list[Query]:
    """Those of the rounds before."""
    return [query for earlier in range(number) for query in read_queries(game, earlier)]


def chosen_pairs(game: Game, number: int, queries: list[Query], written: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Whom to ask what, in order, by query_id and name: where the agent explores, and where answers are worth it."""
    path = game.directory(number) / "asks.json"
    if not path.exists():
        write_json(path, choose_pairs(game, number, queries, game.config.usd_per_round - written["cost_usd"]))
    return read_json(path)


def choose_pairs(game: Game, number: int, queries: list[Query], limit_usd: float) -> dict[str, list[list[str]]]:
    rng, names = game.rng(number, 2), list(game.asker.specs)
    if number == 0:
        return {"explore": [], "aim": [[query.query_id, name] for query in queries for name in names]}
    if game.config.ask == "all":
        order = rng.permutation(len(queries))
        return {"explore": [], "aim": [[queries[i].query_id, name] for i in order for name in names]}
    agent = Orchestrator.load(game.directory(number - 1))
    known = training_queries(game, number)
    candidates = known + queries
    estimates = foretell(game, agent, candidates)
    costs_usd = estimates.chunk(2, dim=1)[1].numpy()
    free = torch.tensor([[game.asker.found((query, name)) is None for name in names] for query in candidates])
    row, choice = explore(game, agent, queries, rng)
    spend = np.cumsum(costs_usd[len(known) + row, choice])
    explored = [(len(known) + int(i), int(k)) for i, k in zip(row, choice, strict=True)]
    explored = explored[: int((spend < game.config.explore * limit_usd).sum())]
    free[tuple(np.array(explored, dtype=np.int64).reshape(-1, 2).T)] = False
    aimed = draw_pairs(worth_asking(estimates, plan_of(agent), middle(game)), free, rng)
    told = ([[candidates[i].query_id, names[k]] for i, k in pairs] for pairs in (explored, aimed))
    return dict(zip(("explore", "aim"), told, strict=True))


def explore(game: Game, agent: Orchestrator, queries: list[Query], rng: np.random.Generator) -> tuple[Any, Any]:
    """Queries in random order and whom the agent would ask, [n] and [n] int64, in mid-episode at budgets drawn
    log-uniformly; now and then someone else."""
    row, n = rng.permutation(len(queries)), len(queries)
    low, high = agent.description["price_range_usd"]
    budget = low * (high / low) ** rng.random(n)
    left = rng.integers(1, game.config.horizon + 1, size=n)
    texts = [queries[i].text for i in row]
    choice = agent.choose(game.encoder.encode(texts), budget * left, left, texts)
    other = rng.random(n) < game.config.epsilon
    return row, np.where(other, rng.integers(len(agent.experts), size=n), choice)


def foretell(game: Game, agent: Orchestrator, queries: Sequence[Query]) -> Tensor:
    """What the agent estimates of queries, [n, 2K]: scores, then costs_usd."""
    assert agent.predictor is not None
    texts = [query.text for query in queries]
    return agent.predictor.predict(torch.from_numpy(np.asarray(game.encoder.encode(texts), np.float32)), texts)


def plan_of(agent: Orchestrator) -> Any:
    assert isinstance(agent.policy, BidPricePolicy)
    return agent.policy.network.plan


def middle(game: Game) -> int:
    return max(1, game.config.horizon // 2)


def pairs_of(game: Game, number: int, asks: list[list[str]]) -> list[Pair]:
    by_id = {query.query_id: query for query in training_queries(game, number + 1)}
    return [(by_id[query_id], name) for query_id, name in asks]


def everyone(game: Game, queries: Sequence[Query]) -> list[Pair]:
    return [(query, name) for query in queries for name in game.asker.specs]


# ---------------------------------------------------------------------------------------------------------------------
# What a round learns


def eras(game: Game, number: int) -> dict[str, int]:
    """Of each expert that changed before a round, when this was noticed last."""
    return {name: one["round"] for one in ended_rounds(game, number) for name in one["changed"]}


def drifts(game: Game, number: int, pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """How each expert's answers of this round differ from what the last agent foretold; see `agents.drift`."""
    if number == 0:
        return {}
    agent = Orchestrator.load(game.directory(number - 1))
    found = {}
    for k, name in enumerate(agent.experts):
        came = [
            (query, answer) for query, asked in pairs if asked == name and (answer := game.asker.found((query, asked)))
        ]
        told = (
            foretell(game, agent, [query for query, _ in came]).double().numpy() if came else np.zeros((0, 2 * k + 2))
        )
        scores = np.array([GRADERS[game.config.grader](answer.text, query).score for query, answer in came])
        costs_usd = np.array([answer.cost_usd for _, answer in came])
        told_k = told[:, k], told[:, k + told.shape[1] // 2]
        found[name] = asdict(find_drift(told_k, (scores, costs_usd), len(agent.experts)))
    return found


def answers_so_far(
    game: Game, number: int, changed: Sequence[str], held_out: Sequence[Query]
) -> tuple[TableInfo, pa.Table, pa.Table, np.ndarray]:
    """What a table directory holds of all answers up to this round: on held-out queries, then on training queries.

    Of an expert that changed only what it has answered since is left. Training queries that nobody has answered, and
    held-out ones that not everybody has, are left out.
    """
    since = eras(game, number) | {name: number for name in changed}
    answers: dict[tuple[str, str], Answer] = {}
    for earlier in range(number + 1):
        game.asker.era = eras(game, earlier)
        asks = read_json(game.directory(earlier) / "asks.json")
        collect(game, pairs_of(game, earlier, asks["explore"] + asks["aim"]), answers, since, earlier)
    game.asker.era = since
    collect(game, everyone(game, held_out), answers, since, number)
    count = Counter(query_id for query_id, _ in answers)
    complete = [query for query in held_out if count[query.query_id] == len(game.asker.specs)]
    some = [query for query in training_queries(game, number + 1) if count[query.query_id]]
    kept = {query.query_id for query in complete + some}
    answers = {pair: answer for pair, answer in answers.items() if pair[0] in kept}
    name = f"{game.config.run_dir.name}-{number}"
    return table_of(name, game.asker.pool, complete + some, answers, game.config.grader, game.encoder)


def collect(
    game: Game, pairs: Sequence[Pair], answers: dict[tuple[str, str], Answer], since: dict[str, int], number: int
) -> None:
    """Adds what the store has of these pairs, unless the expert has changed since."""
    for query, name in pairs:
        answer = game.asker.found((query, name))
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


def learn(game: Game, number: int, table: ExpertTable) -> dict[str, Any]:
    """Fits estimates and plan anew, trains the last round's policy on, and keeps what val says is not worse.

    Args:
        table: with what is missing filled in.
    """
    config, directory = game.config, game.directory(number)
    horizon = min(config.horizon, len(table.rows("val")), len(table.rows("train")))
    predictor = fit_predictor(table, config.seed)
    mean_cost_usd = float(table.mean_cost_usd().max())
    played = table_of_estimates(table, estimates_of(table, predictor), mean_cost_usd)
    rules = make_rules(played, "train", horizon)
    val_rules = make_rules(played, "val", horizon)
    priced = replace(val_rules, price_range_usd=price_range(table.mean_cost_usd("val")))
    budgets = read_json(game.directory(0) / "round.json")["budgets_usd"] if number else budget_grid(priced)
    settings = {"algo": "ppo", "n_envs": 0, "horizon": horizon, "cost_weight": COST_WEIGHT, "max_calls": 1}
    model, made = make_model(SimpleNamespace(**settings, hide_budget=False, seed=config.seed), "bid-price", rules)
    policy: Any = model.policy
    begin_as_plan(policy, table, predictor.rows, predictor.out_of_fold, config.seed)
    last = Orchestrator.load(game.directory(number - 1)) if number else None
    if last is not None:
        weights = {name: x for name, x in last.policy.state_dict().items() if name not in OF_THE_PLAN}
        policy.load_state_dict(policy.state_dict() | weights)
    description = describe_policy(rules, "ppo", made["policy_kwargs"], "bid-price", table)

    def play(router: PolicyRouter) -> Result:
        episodes = -(-VAL_QUERIES // horizon)
        return evaluate(router, val_rules, budgets, episodes, config.seed)

    begun = {name: x.clone() for name, x in policy.state_dict().items()}
    best = play(PolicyRouter(policy, description, played.embeddings))
    train(model, config.timesteps)
    trained = play(PolicyRouter(policy, description, played.embeddings))
    if better := above(trained, best):
        best = trained
    else:
        policy.load_state_dict(begun)
    before = play(last.router(table)) if last is not None else None
    kept = before is None or not above(before, best)
    write_tensors(directory / "policy" / "predictor.safetensors", predictor.tensors())
    save_policy(directory / "policy", policy, description)
    if last is not None and not kept:
        last.save(directory)
    return {
        "budgets_usd": budgets,
        "val": {"score": best.score.tolist(), "cost_usd": best.cost_usd.tolist(), "mean": best.mean_score},
        "val_before": None if before is None else before.mean_score,
        "training_helped": better,
        "kept": kept,
    }


def train(model: Any, timesteps: int) -> None:
    """PPO; first the estimate of the value alone."""
    if timesteps == 0:
        return
    model.policy.train_actor(False)
    model.learn(int(WARM_UP * timesteps))
    model.policy.train_actor(True)
    model.learn(timesteps - int(WARM_UP * timesteps), reset_num_timesteps=False)


def above(result: Result, other: Result) -> bool:
    """Whether it scores more, by more than the standard error of the difference."""
    _, _, gain, stderr = lead(result, other)
    return gain > stderr


# ---------------------------------------------------------------------------------------------------------------------
# What came of it


def examine(game: Game, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """How the agent of every round does on test, after all choices were made; empty where there is no test split."""
    if not part(game.held_out, "test"):
        return {}
    path = game.config.run_dir / "test.json"
    if path.exists() and len(read_json(path)["score"]) == len(rounds):
        return read_json(path)
    number = len(rounds) - 1
    game.asker.era = eras(game, len(rounds))
    measured_usd = game.asker.ask(everyone(game, part(game.held_out, "test")), game.config.usd_to_begin)
    table, seen = partial_table(*answers_so_far(game, number, rounds[-1]["changed"], part(game.held_out, "test")))
    table = fill_missing(table, seen, game.config.seed)
    rules = make_rules(table, "test", min(game.config.horizon, len(table.rows("test"))))
    results = []
    for earlier in range(len(rounds)):
        router = Orchestrator.load(game.directory(earlier)).router(table)
        results.append(evaluate(router, rules, rounds[0]["budgets_usd"], seed=game.config.seed))
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


if __name__ == "__main__":
    sys.exit(main())
