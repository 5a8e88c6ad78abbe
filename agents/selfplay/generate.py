"""Has a round's queries written, and chooses the experts to ask about them.

n queries, K experts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import torch

from agents.policies.bid_price import BidPricePolicy
from agents.policies.budget_value import BudgetValue
from agents.selfplay.acquisition import acquisition_value, draw_domains, draw_pairs
from agents.selfplay.context import SelfPlay
from agents.selfplay.records import ChosenPairs, Writing
from agents.serving.orchestrator import Orchestrator
from experts.generation.model_writer import ModelWriter
from experts.generation.novelty import NoveltyFilter
from experts.generation.writers import Writer, Written
from experts.types import Query
from leeroo_env.files import write_text

WRITTEN_AT_ONCE = 20  # questions by a model: the most that a kill can lose, but on a cluster, which stores each reply
WRITING_SHARE = 0.3  # of a round's money
MAX_WRITING = 3  # attempts to write as many queries as are missing after the novelty filter


def load_or_write_queries(selfplay: SelfPlay, number: int) -> tuple[list[Query], Writing]:
    """The queries of a round, with and without a reference, and what writing them cost."""
    path, record_path = (selfplay.directory(number) / name for name in ("queries.jsonl", "written.json"))
    if path.exists():
        return selfplay.queries(number), Writing.read(record_path)
    queries, written = (selfplay.start, Written()) if number == 0 else write_queries(selfplay, number)
    record = Writing(kept=len(queries), dropped=dict(written.dropped), cost_usd=written.cost_usd)
    record.write(record_path)
    lines = [json.dumps(asdict(query), ensure_ascii=False) for query in queries]
    write_text(path, "".join(f"{line}\n" for line in lines))
    return queries, record


def write_queries(selfplay: SelfPlay, number: int) -> tuple[list[Query], Written]:
    """Has the writers write queries, each the same number, more for domains whose answers have more value.

    Queries must be new: other than all held-out queries and all that were written in earlier rounds, also those that
    got no reference.
    """
    config, rng, total = selfplay.config, selfplay.rng(number, 1), Written()
    store = selfplay.asker.store
    store.label = f"round {number}: writing"
    known = selfplay.training_queries(number)
    earlier = [query.text for before in range(number) for query in selfplay.queries(before)]
    novelty = NoveltyFilter(selfplay.encoder, [query.text for query in selfplay.held_out], earlier)
    values = torch.ones(len(known), 1)
    if config.ask == "aimed":
        agent = selfplay.agent(number - 1)
        values = acquisition_value(selfplay.predict(agent, known), budget_value(agent), mid_episode(selfplay))
    shares = np.array_split(np.arange(config.queries_per_round), len(selfplay.writers))
    for writer, share in zip(selfplay.writers, shares, strict=True):
        missing = draw_domains(writer.domains, [query.domain for query in known], values, len(share), rng)
        for _ in range(MAX_WRITING):
            for domain, n in missing.items():
                few_at_once = isinstance(writer, ModelWriter) and selfplay.asker.cluster is None
                batch = WRITTEN_AT_ONCE if few_at_once else max(n, 1)
                for done in range(0, n, batch):
                    missing[domain] -= write_batch(selfplay, writer, domain, min(batch, n - done), novelty, total, rng)
    total.cost_usd += store.lost_usd[store.label]
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
    """Adds up to n new queries of a domain to `total`, within the dollars for writing; returns how many."""
    spend_cap, store = selfplay.asker.spend_cap, selfplay.asker.store
    billed_usd = total.cost_usd + store.lost_usd[store.label]
    spend_cap.max_usd = spend_cap.spent_usd + WRITING_SHARE * selfplay.config.usd_per_round - billed_usd
    written = writer.write(n, domain, rng)
    filtered = novelty.filter(written.queries)
    total.queries += [replace(query, split="train") for query in filtered.queries]
    total.dropped += written.dropped + filtered.dropped
    total.cost_usd += written.cost_usd
    return len(filtered.queries)


def load_or_choose_pairs(selfplay: SelfPlay, number: int, limit_usd: float) -> ChosenPairs:
    """The pairs to ask in a round, in order; written to `asks.json` before any is asked."""
    path = selfplay.directory(number) / "asks.json"
    if not path.exists():
        choose_pairs(selfplay, number, selfplay.usable_queries(number), limit_usd).write(path)
    return ChosenPairs.read(path)


def choose_pairs(selfplay: SelfPlay, number: int, queries: list[Query], limit_usd: float) -> ChosenPairs:
    """The agent's own choices on new queries, then pairs of all queries that are not answered yet, by their value.

    Args:
        queries: the new ones.
        limit_usd: what the round has left; a share `explore` of it is for the agent's own choices.
    """
    config, rng, names = selfplay.config, selfplay.rng(number, 2), list(selfplay.asker.specs)
    if number == 0 or config.ask == "all":
        order = rng.permutation(len(queries)).tolist() if number else range(len(queries))
        return ChosenPairs(explore=[], aim=[(queries[i].query_id, name) for i in order for name in names])
    agent = selfplay.agent(number - 1)
    known = selfplay.training_queries(number)
    candidates = known + queries
    estimates = selfplay.predict(agent, candidates)
    costs_usd = estimates.cost_usd.numpy()
    unanswered = torch.tensor([[selfplay.asker.found((query, name)) is None for name in names] for query in candidates])
    row, choice = explore(selfplay, agent, queries, rng)
    row = row + len(known)
    total_usd = np.cumsum(np.where(unanswered[row, choice], costs_usd[row, choice], 0.0))
    n_explored = int((total_usd < config.explore * limit_usd).sum())
    row, choice = row[:n_explored], choice[:n_explored]
    unanswered[row, choice] = False
    aimed = draw_pairs(acquisition_value(estimates, budget_value(agent), mid_episode(selfplay)), unanswered, rng)
    return ChosenPairs(
        explore=[(candidates[i].query_id, names[k]) for i, k in zip(row.tolist(), choice.tolist(), strict=True)],
        aim=[(candidates[i].query_id, names[k]) for i, k in aimed.tolist()],
    )


def explore(
    selfplay: SelfPlay, agent: Orchestrator, queries: list[Query], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The n queries in random order and the agent's choice for each, [n] and [n] int64, epsilon of them random.

    Each query is at a random place of an episode, at a budget per query that is log-uniform.
    """
    row, n = rng.permutation(len(queries)), len(queries)
    low, high = agent.description.price_range_usd
    budget = low * (high / low) ** rng.random(n)
    remaining = rng.integers(1, selfplay.config.horizon + 1, size=n)
    texts = [queries[i].text for i in row]
    choice = agent.choose(selfplay.encoder.encode(texts), budget * remaining, remaining, texts)
    is_random = rng.random(n) < selfplay.config.epsilon
    return row, np.where(is_random, rng.integers(len(agent.experts), size=n), choice)


def budget_value(agent: Orchestrator) -> BudgetValue:
    """The agent's value of the remaining budget."""
    assert isinstance(agent.policy, BidPricePolicy)
    return agent.policy.network.budget_value


def mid_episode(selfplay: SelfPlay) -> int:
    """Number of queries left in the middle of an episode."""
    return max(1, selfplay.config.horizon // 2)
