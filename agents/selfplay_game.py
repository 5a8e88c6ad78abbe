"""What a self-play run is played with and where its rounds lie; its settings.

n queries, K experts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import experts.tiny
from agents.ask_pairs import Asker, Pair
from agents.files import read_json
from agents.orchestrator import Orchestrator
from agents.run_dir import begin_run, read_settings
from experts.collect import QueryEncoder
from experts.expert import Query
from experts.grading import GRADERS
from experts.pool import keys_for
from experts.queries import load_queries
from experts.questions import GymWriter, ModelWriter, TaskWriter, Writer, writing_expert
from experts.store import StoredExpert
from leeroo_env import InputError
from leeroo_env.builtin import DEFAULT, resolve
from leeroo_env.dynamics import HORIZON
from leeroo_env.table import hash_split

PROGRAMS = ("tasks", "reasoning-gym")  # writers; others are experts
TINY_POOL = Path(experts.tiny.__file__).parent / "pool.yaml"


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
    """the most that a round's writing and answers may cost, in dollars; what cannot pay for the next call at its worst
    is left over"""
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


def read_queries(game: Game, number: int) -> list[Query]:
    path = game.directory(number) / "queries.jsonl"
    try:
        return [Query(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def training_queries(game: Game, number: int) -> list[Query]:
    """Those of the rounds before."""
    return [query for earlier in range(number) for query in read_queries(game, earlier)]


def pairs_of(game: Game, number: int, asks: list[list[str]]) -> list[Pair]:
    by_id = {query.query_id: query for query in training_queries(game, number + 1)}
    return [(by_id[query_id], name) for query_id, name in asks]


def everyone(game: Game, queries: Sequence[Query]) -> list[Pair]:
    return [(query, name) for query in queries for name in game.asker.specs]


def foretell(game: Game, agent: Orchestrator, queries: Sequence[Query]) -> Tensor:
    """What the agent estimates of queries, [n, 2K]: scores, then costs_usd."""
    assert agent.predictor is not None
    texts = [query.text for query in queries]
    return agent.predictor.predict(torch.from_numpy(np.asarray(game.encoder.encode(texts), np.float32)), texts)


def eras(game: Game, number: int) -> dict[str, int]:
    """Of each expert that changed before a round, when this was noticed last."""
    return {name: one["round"] for one in ended_rounds(game, number) for name in one["changed"]}
