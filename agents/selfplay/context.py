"""What a self-play run is played with and where its rounds lie; its settings.

n queries, K experts.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import experts.tiny
from agents.estimators.base import Estimates
from agents.selfplay.labelling import Asker, Pair
from agents.serving.orchestrator import Orchestrator
from agents.training.run_dir import begin_run, read_settings
from experts.collect.store import StoredExpert
from experts.data.queries import load_queries
from experts.generation.model_writer import ModelWriter, writing_expert
from experts.generation.novelty import normal_question
from experts.generation.writers import GymWriter, TaskWriter, Writer
from experts.grading import GRADERS
from experts.pool import keys_for
from experts.specs import Pool
from experts.types import Query, TextEncoder
from leeroo_env import InputError
from leeroo_env.builtin import DEFAULT, resolve
from leeroo_env.dynamics import HORIZON
from leeroo_env.files import read_json
from leeroo_env.table import hash_split

VOTERS = 3  # experts asked about each question that a model has written; two have to agree at the least
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
    """who writes, several with commas between: tasks (programs for the tiny models), reasoning-gym, a model by name"""
    writer_pool: str = ""
    """pool.yaml of the models that write; that of the experts if empty"""
    teacher: str = ""
    """expert whose answers are the references of what models write; if empty, what most of those asked answer"""
    least_agreement: float = 0.6
    """share of these experts that has to agree, or the question is not used"""
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
class SelfPlay:
    """What a run plays with.

    Attributes:
        held_out: the queries of val, then those of test.
        start: the training queries that it begins with.
    """

    config: Config
    asker: Asker
    writers: list[Writer]
    encoder: TextEncoder
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
    if not 0.5 <= config.least_agreement <= 1:
        raise InputError(f"least_agreement {config.least_agreement}: must be 0.5 to 1")


def check_pools(config: Config, pool: Pool, writer_pool: Pool) -> None:
    """Raises InputError where writers or teacher are not there, or where too few experts are to agree."""
    if config.teacher:
        pool.select([config.teacher])
    models = [name for name in config.writer.split(",") if name not in PROGRAMS]
    writer_pool.select(models)
    if models and not config.teacher and len(pool.experts) < VOTERS:
        raise InputError(
            f"writer {models[0]!r}: references by agreement need {VOTERS} experts and {pool.path} has "
            f"{len(pool.experts)}; name a --teacher"
        )


def start_or_resume(config: Config) -> None:
    """Writes down the settings of a new run. One that is there goes on with the same ones, but for those of how far."""
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()}
    free = ("rounds", "usd_to_begin", "threads", "run_dir")
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
    """The queries of val and test, and the training queries to begin with, without those that are there too."""
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
    held_out = part(queries, "val") + part(queries, "test")
    reserved = {normal_question(query.text) for query in held_out}
    train = [query for query in part(queries, "train") if normal_question(query.text) not in reserved]
    if twice := len(part(queries, "train")) - len(train):
        warnings.warn(
            f"{twice} training quer{'ies are' if twice > 1 else 'y is'} in val or test too and left out", stacklevel=2
        )
    if len(train) < 2 or not part(queries, "val"):
        raise InputError(f"seed_queries: {len(train)} of train, {len(part(queries, 'val'))} of val; needs 2 and 1")
    if config.start:
        drawn = np.random.default_rng([config.seed, 0, 0]).permutation(len(train))[: config.start]
        train = [train[i] for i in sorted(drawn.tolist())]
    return held_out, train


def make_encoder(config: Config) -> TextEncoder:
    from experts.encoder import Encoder

    return Encoder(config.encoder)


def make_writers(config: Config, asker: Asker, writer_pool: Pool, start: list[Query]) -> list[Writer]:
    """Raises InputError where a package or an environment variable is missing."""
    return [make_writer(name, config, asker, writer_pool, start) for name in dict.fromkeys(config.writer.split(","))]


def make_writer(name: str, config: Config, asker: Asker, writer_pool: Pool, start: list[Query]) -> Writer:
    if name == "tasks":
        return TaskWriter()
    if name == "reasoning-gym":
        return GymWriter()
    (spec,) = writer_pool.select([name])
    expert: Any = writing_expert(spec, asker.spend_cap, seed=config.seed)
    return ModelWriter(StoredExpert(expert, keys_for(expert.spec), asker.store), start)


def finished_rounds(selfplay: SelfPlay, n: int) -> list[dict[str, Any]]:
    """The numbers of the first n."""
    return [read_json(selfplay.directory(number) / "round.json") for number in range(n)]


def part(queries: Sequence[Query], split: str) -> list[Query]:
    return [query for query in queries if query.split == split]


def read_queries(selfplay: SelfPlay, number: int) -> list[Query]:
    path = selfplay.directory(number) / "queries.jsonl"
    try:
        return [Query(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def read_references(selfplay: SelfPlay, number: int) -> dict[str, dict[str, Any]]:
    """The reference and the agreement behind it of each question of a round that got one so; see `selfplay_vote`."""
    return read_json(selfplay.directory(number) / "references.json")["references"]


def usable_queries(selfplay: SelfPlay, number: int) -> list[Query]:
    """The queries of a round that have a reference."""
    found = {query_id: one["reference"] for query_id, one in read_references(selfplay, number).items()}
    queries = read_queries(selfplay, number)
    known = [query if query.reference else replace(query, reference=found.get(query.query_id)) for query in queries]
    return [query for query in known if query.reference]


def training_queries(selfplay: SelfPlay, number: int) -> list[Query]:
    """Those of the rounds before that have a reference."""
    return [query for earlier in range(number) for query in usable_queries(selfplay, earlier)]


def as_pairs(selfplay: SelfPlay, number: int, asks: list[list[str]]) -> list[Pair]:
    """Those of queries that have a reference."""
    by_id = {query.query_id: query for query in training_queries(selfplay, number + 1)}
    return [(by_id[query_id], name) for query_id, name in asks if query_id in by_id]


def all_experts_pairs(selfplay: SelfPlay, queries: Sequence[Query]) -> list[Pair]:
    return [(query, name) for query in queries for name in selfplay.asker.specs]


def predict(selfplay: SelfPlay, agent: Orchestrator, queries: Sequence[Query]) -> Estimates:
    """The agent's estimates for n queries."""
    assert agent.predictor is not None
    texts = [query.text for query in queries]
    return agent.predictor.predict(torch.from_numpy(np.asarray(selfplay.encoder.encode(texts), np.float32)), texts)


def expert_versions(selfplay: SelfPlay, number: int) -> dict[str, int]:
    """Of each expert that changed before a round, when this was noticed last."""
    return {name: one["round"] for one in finished_rounds(selfplay, number) for name in one["changed"]}
