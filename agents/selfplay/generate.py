"""What a round of self-play writes and asks.

n queries, K experts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from agents.policies.bid_price import BidPricePolicy
from agents.selfplay.acquisition import acquisition_value, draw_domains, draw_pairs
from agents.selfplay.context import SelfPlay, predict, read_queries, training_queries, usable_queries
from agents.selfplay.labelling import unanswered_usd
from agents.serving.orchestrator import Orchestrator
from experts.generation.model_writer import ModelWriter
from experts.generation.novelty import NoveltyFilter
from experts.generation.writers import Writer, Written
from experts.types import Query
from leeroo_env.files import read_json, write_json, write_text

WRITTEN_AT_ONCE = 20  # by a model: the replies to these are all that a kill can lose
WRITING_SHARE = 0.3  # of a round's money: the rest is for answers
MAX_WRITING = 3  # times that the writer is asked for what the novelty filter leaves too few of


def load_or_write_queries(selfplay: SelfPlay, number: int) -> tuple[list[Query], dict[str, Any]]:
    """The queries of a round, and what became of those written: kept, dropped by reason, dollars."""
    directory = selfplay.directory(number)
    if (directory / "queries.jsonl").exists():
        return read_queries(selfplay, number), read_json(directory / "written.json")
    queries, written = (selfplay.start, Written()) if number == 0 else write_queries(selfplay, number)
    told = {"kept": len(queries), "dropped": dict(written.dropped), "cost_usd": written.cost_usd}
    write_json(directory / "written.json", told)
    lines = [json.dumps(asdict(query), ensure_ascii=False) for query in queries]
    write_text(directory / "queries.jsonl", "".join(f"{line}\n" for line in lines))
    return queries, told


def write_queries(selfplay: SelfPlay, number: int) -> tuple[list[Query], Written]:
    """Has queries written, more for domains whose answers are worth asking for, until enough of each are new.

    Writers share the number evenly. What any round has written counts as seen, also where experts did not agree on it.
    """
    rng, total = selfplay.rng(number, 1), Written()
    known = training_queries(selfplay, number)
    seen = [query.text for earlier in range(number) for query in read_queries(selfplay, earlier)]
    novelty = NoveltyFilter(selfplay.encoder, [query.text for query in selfplay.held_out], seen)
    worth = torch.ones(len(known), 1)
    if selfplay.config.ask == "aimed":
        agent = Orchestrator.load(selfplay.directory(number - 1))
        worth = acquisition_value(predict(selfplay, agent, known), plan_of(agent), mid_episode(selfplay))
    shares = np.array_split(np.arange(selfplay.config.queries_per_round), len(selfplay.writers))
    for writer, share in zip(selfplay.writers, shares, strict=True):
        missing = draw_domains(writer.domains, [q.domain for q in known], worth, len(share), rng)
        for _ in range(MAX_WRITING):
            for domain, n in missing.items():
                batch = WRITTEN_AT_ONCE if isinstance(writer, ModelWriter) else max(n, 1)
                for done in range(0, n, batch):
                    missing[domain] -= write_batch(selfplay, writer, domain, min(batch, n - done), novelty, total, rng)
    return total.queries, total


def write_batch(
    selfplay: SelfPlay,
    writer: Writer,
    domain: str,
    n: int,
    novelty: NoveltyFilter,
    total: Written,
    rng: np.random.Generator,
) -> int:
    """Adds up to n new queries of a domain to `total`, as far as the money for writing goes; returns how many."""
    spend_cap = selfplay.asker.spend_cap
    before_usd = spend_cap.spent_usd
    spend_cap.max_usd = before_usd + WRITING_SHARE * selfplay.config.usd_per_round - total.cost_usd
    written = writer.write(n, domain, rng)
    filtered = novelty.filter(written.queries)
    total.queries += [replace(query, split="train") for query in filtered.queries]
    total.dropped += written.dropped + filtered.dropped
    total.cost_usd += written.cost_usd + unanswered_usd(spend_cap.spent_usd - before_usd, written.cost_usd)
    return len(filtered.queries)


def load_or_choose_pairs(selfplay: SelfPlay, number: int, limit_usd: float) -> dict[str, list[list[str]]]:
    """Whom to ask what, in order, by query_id and name: where the agent explores, and where answers are worth it."""
    path = selfplay.directory(number) / "asks.json"
    if not path.exists():
        write_json(path, choose_pairs(selfplay, number, usable_queries(selfplay, number), limit_usd))
    return read_json(path)


def choose_pairs(selfplay: SelfPlay, number: int, queries: list[Query], limit_usd: float) -> dict[str, list[list[str]]]:
    rng, names = selfplay.rng(number, 2), list(selfplay.asker.specs)
    if number == 0:
        return {"explore": [], "aim": [[query.query_id, name] for query in queries for name in names]}
    if selfplay.config.ask == "all":
        order = rng.permutation(len(queries))
        return {"explore": [], "aim": [[queries[i].query_id, name] for i in order for name in names]}
    agent = Orchestrator.load(selfplay.directory(number - 1))
    known = training_queries(selfplay, number)
    candidates = known + queries
    estimates = predict(selfplay, agent, candidates)
    costs_usd = estimates.cost_usd.numpy()
    free = torch.tensor([[selfplay.asker.found((query, name)) is None for name in names] for query in candidates])
    row, choice = explore(selfplay, agent, queries, rng)
    spend = np.cumsum(np.where(free[len(known) + row, choice], costs_usd[len(known) + row, choice], 0.0))
    explored = [(len(known) + int(i), int(k)) for i, k in zip(row, choice, strict=True)]
    explored = explored[: int((spend < selfplay.config.explore * limit_usd).sum())]
    free[tuple(np.array(explored, dtype=np.int64).reshape(-1, 2).T)] = False
    aimed = draw_pairs(acquisition_value(estimates, plan_of(agent), mid_episode(selfplay)), free, rng)
    told = ([[candidates[i].query_id, names[k]] for i, k in pairs] for pairs in (explored, aimed))
    return dict(zip(("explore", "aim"), told, strict=True))


def explore(selfplay: SelfPlay, agent: Orchestrator, queries: list[Query], rng: np.random.Generator) -> tuple[Any, Any]:
    """Queries in random order and whom the agent would ask, [n] and [n] int64, in mid-episode at budgets drawn
    log-uniformly; now and then someone else."""
    row, n = rng.permutation(len(queries)), len(queries)
    low, high = agent.description.price_range_usd
    budget = low * (high / low) ** rng.random(n)
    left = rng.integers(1, selfplay.config.horizon + 1, size=n)
    texts = [queries[i].text for i in row]
    choice = agent.choose(selfplay.encoder.encode(texts), budget * left, left, texts)
    other = rng.random(n) < selfplay.config.epsilon
    return row, np.where(other, rng.integers(len(agent.experts), size=n), choice)


def plan_of(agent: Orchestrator) -> Any:
    assert isinstance(agent.policy, BidPricePolicy)
    return agent.policy.network.budget_value


def mid_episode(selfplay: SelfPlay) -> int:
    return max(1, selfplay.config.horizon // 2)
