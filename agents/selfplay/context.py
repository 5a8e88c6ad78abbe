"""What the rounds of a self-play run share: settings, experts, writers, first queries, and the files of each round.

n queries, K experts.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.estimators.base import Estimates
from agents.selfplay.config import Config, is_file
from agents.selfplay.labelling import Asker, Pair
from agents.selfplay.records import PairId, Round, Voting
from agents.serving.orchestrator import Orchestrator
from experts.collect.store import StoredExpert, parts_directory
from experts.data.queries import load_queries
from experts.generation.model_writer import ModelWriter, writing_expert
from experts.generation.novelty import normal_question
from experts.generation.writers import FileWriter, GymWriter, TaskWriter, Writer
from experts.pool import keys_for, make_expert
from experts.specs import Pool
from experts.types import Query, TextEncoder
from leeroo_env import InputError
from leeroo_env.builtin import DEFAULT, resolve
from leeroo_env.table import hash_split


@dataclass(frozen=True)
class SelfPlay:
    """A self-play run.

    Attributes:
        config: its settings.
        asker: asks the experts, and keeps their answers.
        writers: write new queries.
        encoder: embeds queries.
        held_out: the queries of val, then those of test.
        start: the training queries of round 0.
        rounds: the finished rounds, in order.
    """

    config: Config
    asker: Asker
    writers: list[Writer]
    encoder: TextEncoder
    held_out: list[Query]
    start: list[Query]
    rounds: list[Round] = field(default_factory=list)
    _loaded: dict[int, Orchestrator] = field(default_factory=dict)

    def directory(self, number: int) -> Path:
        """The directory of a round."""
        return self.config.run_dir / "rounds" / f"{number:03d}"

    def rng(self, number: int, purpose: int) -> np.random.Generator:
        """A random generator for one purpose in a round."""
        return np.random.default_rng([self.config.seed, number, purpose])

    def agent(self, number: int) -> Orchestrator:
        """The agent of a finished round. The last one used is kept in memory."""
        if number not in self._loaded:
            self._loaded.clear()
            self._loaded[number] = Orchestrator.load(self.directory(number))
        return self._loaded[number]

    def predict(self, agent: Orchestrator, queries: Sequence[Query]) -> Estimates:
        """The agent's estimates for n queries."""
        assert agent.predictor is not None
        texts = [query.text for query in queries]
        return agent.predictor.predict(torch.from_numpy(np.asarray(self.encoder.encode(texts), np.float32)), texts)

    def expert_versions(self, number: int) -> dict[str, int]:
        """Of each expert that changed before a round, the last round in which this was found."""
        return {name: one.round for one in self.rounds[:number] for name in one.changed}

    def queries(self, number: int) -> list[Query]:
        """The queries of a round, with and without a reference."""
        path = self.directory(number) / "queries.jsonl"
        try:
            return [Query(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None

    def voting(self, number: int) -> Voting:
        """The votes on a round's questions, and the references that they gave."""
        return Voting.read(self.directory(number) / "references.json")

    def usable_queries(self, number: int) -> list[Query]:
        """The queries of a round that have a reference."""
        voted = {query_id: one.reference for query_id, one in self.voting(number).references.items()}
        queries = self.queries(number)
        known = [query if query.reference else replace(query, reference=voted.get(query.query_id)) for query in queries]
        return [query for query in known if query.reference]

    def training_queries(self, number: int) -> list[Query]:
        """The usable queries of the rounds before a round."""
        return [query for earlier in range(number) for query in self.usable_queries(earlier)]

    def as_pairs(self, number: int, ids: Iterable[PairId]) -> list[Pair]:
        """The pairs with these ids, as far as their queries are usable, of all rounds up to one."""
        by_id = {query.query_id: query for query in self.training_queries(number + 1)}
        return [(by_id[query_id], name) for query_id, name in ids if query_id in by_id]

    def all_experts_pairs(self, queries: Sequence[Query]) -> list[Pair]:
        """Each query with each expert."""
        return [(query, name) for query in queries for name in self.asker.specs]


def seed_queries(config: Config) -> tuple[list[Query], list[Query]]:
    """The queries of val and test, and the first training queries, without those that are in val or test too."""
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
    held_out = of_split(queries, "val") + of_split(queries, "test")
    reserved = {normal_question(query.text) for query in held_out}
    train = [query for query in of_split(queries, "train") if normal_question(query.text) not in reserved]
    if left_out := len(of_split(queries, "train")) - len(train):
        warnings.warn(
            f"{left_out} training quer{'ies are' if left_out > 1 else 'y is'} in val or test too and left out",
            stacklevel=2,
        )
    if len(train) < 2 or not of_split(queries, "val"):
        raise InputError(f"seed_queries: {len(train)} of train, {len(of_split(queries, 'val'))} of val; needs 2 and 1")
    if config.start:
        drawn = np.random.default_rng([config.seed, 0, 0]).permutation(len(train))[: config.start]
        train = [train[i] for i in sorted(drawn.tolist())]
    return held_out, train


def of_split(queries: Sequence[Query], split: str) -> list[Query]:
    return [query for query in queries if query.split == split]


def make_encoder(config: Config) -> TextEncoder:
    from experts.encoder import Encoder

    return Encoder(config.encoder)


def make_writers(config: Config, asker: Asker, writer_pool: Pool, start: list[Query]) -> list[Writer]:
    """The writers that `config.writer` names. Raises InputError where a package or environment variable is missing."""
    return [make_writer(name, config, asker, writer_pool, start) for name in dict.fromkeys(config.writer.split(","))]


def make_writer(name: str, config: Config, asker: Asker, writer_pool: Pool, start: list[Query]) -> Writer:
    if name == "tasks":
        return TaskWriter()
    if name == "reasoning-gym":
        return GymWriter()
    if is_file(name):
        asker.store.take_from(parts_directory(Path(name).resolve().with_suffix("")))  # what was paid for these
        return FileWriter(name)
    (spec,) = writer_pool.select([name])
    make = asker.cluster.expert if asker.cluster else make_expert
    expert: Any = writing_expert(spec, asker.spend_cap, seed=config.seed, make=make)
    return ModelWriter(StoredExpert(expert, keys_for(expert.spec), asker.store), start)
