"""References for the questions that a model has written: what the experts asked about them agree on, or a teacher says.

n queries, K experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from agents.estimators.base import Estimates
from agents.selfplay.acquisition import LEAST_CHANCE
from agents.selfplay.context import VOTERS, SelfPlay, predict
from agents.serving.orchestrator import Orchestrator
from experts.generation.consensus import consensus_references
from experts.spending import not_asked
from experts.types import Query
from leeroo_env.files import read_json, write_json

LEAST_SETTLED = 0.25  # chance that most voters are right; below it they would rather agree on errors
VOTING_SHARE = 0.5  # of a round's money; the rest is for answers that are worth asking for


def find_references(selfplay: SelfPlay, number: int, queries: Sequence[Query], limit_usd: float) -> dict[str, Any]:
    """Asks about a round's questions without reference, and writes down in `references.json` what they get.

    An answer stands if two voters or more gave it, with the most of the weight, which is each one's estimated score.
    They are graded by it like everybody else, which flatters them by up to 0.09 of score on the tiny table, and leaving
    out what they differ on by more (`benchmarks/AGREEMENT.md`). So drift takes no rise for a change.

    Args:
        limit_usd: what the round has left.

    Returns:
        references: query_id -> the reference and `agreement`, the share of the weight of those that answered behind it.
        votes: query_id and expert of each answer that came.
        dropped: reason -> how many questions are not used.
        spent_usd: what the votes cost.
    """
    path = selfplay.directory(number) / "references.json"
    if not path.exists():
        unsettled = [query for query in queries if not query.reference]
        by_id, asked, spent_usd = {query.query_id: query for query in unsettled}, [], 0.0
        voters = load_or_choose_voters(selfplay, number, unsettled)
        if voters:
            all_vote = selfplay.config.ask == "all" or len(selfplay.asker.specs) <= VOTERS
            share = len(unsettled) / len(queries) * (1.0 if all_vote else VOTING_SHARE)
            asked = [by_id[query_id] for query_id in voters]
            spent_usd = ask_voters(selfplay, asked, voters, share * limit_usd)
        settled = collect_votes(selfplay, number, asked)
        settled["dropped"]["unlikely to be settled"] = len(unsettled) - len(asked)
        write_json(path, settled | {"spent_usd": spent_usd})
    return read_json(path)


def load_or_choose_voters(selfplay: SelfPlay, number: int, queries: Sequence[Query]) -> dict[str, list[str]]:
    """By query_id the experts in the order in which to ask, the questions in random order, without hopeless ones."""
    path = selfplay.directory(number) / "voters.json"
    if not path.exists():
        names, voters = list(selfplay.asker.specs), {}
        if queries:
            estimates = predict(selfplay, Orchestrator.load(selfplay.directory(number - 1)), queries)
            teacher = names.index(selfplay.config.teacher) if selfplay.config.teacher else None
            ranks, chance = rank_voters(estimates, teacher)
            for i in selfplay.rng(number, 3).permutation(len(queries)).tolist():
                if teacher is not None or chance[i] >= LEAST_SETTLED:
                    voters[queries[i].query_id] = [names[k] for k in ranks[i]]
        write_json(path, voters)
    return read_json(path)


def rank_voters(estimates: Estimates, teacher: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Whom to ask about each question, best first, [n, K] int64, and the chance that most of the first are right, [n].

    First the `VOTERS` with the highest chance squared over cost, as if they erred independently; then, in the place of
    those that fail, the others by score over cost.

    Args:
        estimates: of n questions.
        teacher: the expert that comes first in any case.
    """
    score, cost_usd = (x.double().numpy() for x in (estimates.score, estimates.cost_usd))
    score = score.clip(LEAST_CHANCE, 1 - LEAST_CHANCE)
    cost_usd = cost_usd.clip(max(1e-3 * float(cost_usd.mean()), 1e-12))  # some are free
    n, k = score.shape
    single = score / cost_usd
    if teacher is not None:
        single[:, teacher] = np.inf
    if k < VOTERS:
        return np.argsort(-single, axis=1, kind="stable"), np.zeros(n)
    sets = np.array([s for s in combinations(range(k), VOTERS) if teacher is None or teacher in s])  # [sets, 3]
    a, b, c = (score[:, sets[:, i]] for i in range(VOTERS))
    chance = a * b + b * c + a * c - 2 * a * b * c
    best = (chance**2 / cost_usd[:, sets].sum(axis=2)).argmax(axis=1)
    first = np.zeros((n, k), dtype=bool)
    first[np.arange(n)[:, None], sets[best]] = True
    return np.lexsort((-single, ~first), axis=1), chance[np.arange(n), best]


def ask_voters(selfplay: SelfPlay, queries: Sequence[Query], voters: dict[str, list[str]], limit_usd: float) -> float:
    """Asks the first voters about each question, and those next in line where some fail; returns dollars."""
    names, found = list(selfplay.asker.specs), selfplay.asker.found
    at_first = len(names) if selfplay.config.ask == "all" else min(VOTERS, len(names))
    pairs = [(query, name) for query in queries for name in voters[query.query_id][:at_first]]
    spent_usd = selfplay.asker.ask(pairs, limit_usd)
    for rank in range(at_first, 0 if selfplay.config.teacher else len(names)):
        came = [sum(found((query, name)) is not None for name in voters[query.query_id][:rank]) for query in queries]
        pairs = [(q, voters[q.query_id][rank]) for q, n in zip(queries, came, strict=True) if 0 < n < VOTERS]
        spent_usd += selfplay.asker.ask(pairs, limit_usd - spent_usd)
    return spent_usd


def collect_votes(selfplay: SelfPlay, number: int, queries: Sequence[Query]) -> dict[str, Any]:
    """What `find_references` returns, but for the dollars."""
    config, names = selfplay.config, list(selfplay.asker.specs)
    came = {q.query_id: {name: a for name in names if (a := selfplay.asker.found((q, name)))} for q in queries}
    dropped, enough = Counter[str](), []
    for query in queries:
        there = came[query.query_id]
        if config.teacher in there or (not config.teacher and len(there) >= VOTERS):
            enough.append(query)
        else:
            dropped["too few answers" if there else "not asked"] += 1
    votes = [[query_id, name] for query_id, there in came.items() for name in there]
    told: dict[str, Any] = {"references": {}, "votes": votes, "dropped": dict(dropped)}
    if not enough:
        return told
    scores = predict(selfplay, Orchestrator.load(selfplay.directory(number - 1)), enough).score
    weights = scores.double().clamp(LEAST_CHANCE, 1 - LEAST_CHANCE).T.tolist()
    consensus = consensus_references(
        enough,
        {name: [came[query.query_id].get(name) or not_asked() for query in enough] for name in names},
        config.grader,
        weights=dict(zip(names, weights, strict=True)),
        teacher=config.teacher or None,
        least_share=config.least_agreement,
    )
    for query, share in zip(consensus.queries, consensus.shares.tolist(), strict=True):
        told["references"][query.query_id] = {"reference": query.reference, "agreement": share}
    return told | {"dropped": dict(dropped + consensus.dropped)}


def query_counts(written: dict[str, Any], settled: dict[str, Any], usable: int) -> dict[str, Any]:
    """What became of a round's questions: kept, dropped by reason, dollars for writing."""
    return written | {"kept": usable, "dropped": dict(Counter(written["dropped"]) + Counter(settled["dropped"]))}


def agreement_summary(settled: dict[str, Any]) -> dict[str, float]:
    """How many questions were settled, and the mean agreement on these."""
    shares = [one["agreement"] for one in settled["references"].values()]
    return {"settled": len(shares), "mean": sum(shares) / max(len(shares), 1)}
