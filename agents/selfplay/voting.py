"""Gives references to questions that a model has written: the answer of a weighted majority of experts, or a teacher's.

n queries, K experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from agents.estimators.base import Estimates
from agents.selfplay.acquisition import LEAST_PROBABILITY
from agents.selfplay.config import VOTERS
from agents.selfplay.context import SelfPlay
from agents.selfplay.records import Agreement, PairId, Reference, Voters, Voting, Writing
from experts.generation.consensus import consensus_references
from experts.spending import not_asked
from experts.types import Query
from leeroo_env.files import read_model, write_json
from leeroo_env.variants import entry_of

LEAST_SETTLED = 0.25  # least probability of a right majority; below it agreement on an error is more likely
VOTING_SHARE = 0.5  # of a round's money; the rest is for answers by their value


def load_or_find_references(selfplay: SelfPlay, number: int, queries: Sequence[Query], limit_usd: float) -> Voting:
    """Asks voters about a round's questions without reference; writes the outcome to `references.json`.

    An answer becomes the reference if at least two voters gave it and it has the largest weight, the sum of its voters'
    estimated scores. The voters are graded by it like all experts, which raises their scores by up to 0.09 on the tiny
    table; leaving out the voters' answers changes scores by more (`benchmarks/AGREEMENT.md`). Therefore a rise of
    scores does not count as drift.

    Args:
        limit_usd: what the round has left.
    """
    path = selfplay.directory(number) / "references.json"
    if not path.exists():
        without = [query for query in queries if not query.reference]
        voters = load_or_choose_voters(selfplay, number, without)
        by_id = {query.query_id: query for query in without}
        questions, spent_usd = [by_id[query_id] for query_id in voters], 0.0
        if questions:
            all_vote = selfplay.config.ask == "all" or len(selfplay.asker.specs) <= VOTERS
            share = len(without) / len(queries) * (1.0 if all_vote else VOTING_SHARE)
            spent_usd = ask_voters(selfplay, number, questions, voters, share * limit_usd)
        references, votes, dropped = collect_votes(selfplay, number, questions)
        dropped |= {"unlikely to be settled": len(without) - len(questions)}
        Voting(references=references, votes=votes, dropped=dropped, spent_usd=spent_usd).write(path)
    return Voting.read(path)


def load_or_choose_voters(selfplay: SelfPlay, number: int, queries: Sequence[Query]) -> dict[str, list[str]]:
    """By query_id the experts in the order in which to ask them; queries in random order, without hopeless ones."""
    path = selfplay.directory(number) / "voters.json"
    if not path.exists():
        names, teacher, voters = list(selfplay.asker.specs), selfplay.config.teacher, {}
        if queries:
            estimates = selfplay.predict(selfplay.agent(number - 1), queries)
            models = [entry_of(name, names) for name in names]
            ranks, probability = rank_voters(estimates, names.index(teacher) if teacher else None, models)
            for i in selfplay.rng(number, 3).permutation(len(queries)).tolist():
                if teacher or probability[i] >= LEAST_SETTLED:
                    voters[queries[i].query_id] = [names[k] for k in ranks[i]]
        write_json(path, voters)
    return read_model(path, Voters).root


def rank_voters(
    estimates: Estimates, teacher: int | None = None, models: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The order in which to ask experts, [n, K] int64, and the probability of a right majority of the first, [n].

    The first `VOTERS` are the set with the highest probability squared over cost, if errors are independent. The others
    follow by score over cost, to replace voters whose calls fail.

    Args:
        estimates: of n questions.
        teacher: the expert that comes first in any case.
        models: of the K experts; those of one model are no two voters of a set. None: all differ.
    """
    score, cost_usd = (x.double().numpy() for x in (estimates.score, estimates.cost_usd))
    score = score.clip(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    cost_usd = cost_usd.clip(max(1e-3 * float(cost_usd.mean()), 1e-12))  # some are free
    n, k = score.shape
    score_per_cost = score / cost_usd
    if teacher is not None:
        score_per_cost[:, teacher] = np.inf
    sets = np.array(  # [sets, 3]
        [
            s
            for s in combinations(range(k), VOTERS)
            if (teacher is None or teacher in s) and (models is None or len({models[i] for i in s}) == VOTERS)
        ]
    )
    if not len(sets):
        return np.argsort(-score_per_cost, axis=1, kind="stable"), np.zeros(n)
    a, b, c = (score[:, sets[:, i]] for i in range(VOTERS))
    probability = a * b + b * c + a * c - 2 * a * b * c
    best = (probability**2 / cost_usd[:, sets].sum(axis=2)).argmax(axis=1)
    first = np.zeros((n, k), dtype=bool)
    first[np.arange(n)[:, None], sets[best]] = True
    return np.lexsort((-score_per_cost, ~first), axis=1), probability[np.arange(n), best]


def ask_voters(
    selfplay: SelfPlay, number: int, queries: Sequence[Query], voters: dict[str, list[str]], limit_usd: float
) -> float:
    """Asks the first voters about each question, and the next ones where some calls failed; returns dollars."""
    asker, n_experts, has_teacher = selfplay.asker, len(selfplay.asker.specs), bool(selfplay.config.teacher)
    n_first = n_experts if selfplay.config.ask == "all" else min(VOTERS, n_experts)
    pairs = [(query, name) for query in queries for name in voters[query.query_id][:n_first]]
    spent_usd = asker.ask(pairs, limit_usd, f"round {number}: votes")
    for rank in range(n_first, 0 if has_teacher else n_experts):
        asked = {query: voters[query.query_id][:rank] for query in queries}
        votes = [sum(asker.found((query, name)) is not None for name in names) for query, names in asked.items()]
        pairs = [(query, voters[query.query_id][rank]) for query, n in zip(asked, votes, strict=True) if 0 < n < VOTERS]
        spent_usd += asker.ask(pairs, limit_usd - spent_usd, f"round {number}: votes, expert {rank + 1}")
    return spent_usd


def collect_votes(
    selfplay: SelfPlay, number: int, queries: Sequence[Query]
) -> tuple[dict[str, Reference], list[PairId], dict[str, int]]:
    """References by query_id, the answers received, and the number of questions dropped by reason."""
    config, names, asker = selfplay.config, list(selfplay.asker.specs), selfplay.asker
    answers = {q.query_id: {name: a for name in names if (a := asker.found((q, name)))} for q in queries}
    votes = [(query_id, name) for query_id, by_expert in answers.items() for name in by_expert]
    dropped, enough = Counter[str](), []
    for query in queries:
        by_expert = answers[query.query_id]
        if config.teacher in by_expert or (not config.teacher and len(by_expert) >= VOTERS):
            enough.append(query)
        else:
            dropped["too few answers" if by_expert else "not asked"] += 1
    if not enough:
        return {}, votes, dict(dropped)
    scores = selfplay.predict(selfplay.agent(number - 1), enough).score
    weights = scores.double().clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY).T.tolist()
    consensus = consensus_references(
        enough,
        {name: [answers[query.query_id].get(name) or not_asked() for query in enough] for name in names},
        config.grader,
        weights=dict(zip(names, weights, strict=True)),
        teacher=config.teacher or None,
        least_share=config.least_agreement,
    )
    references = {
        query.query_id: Reference(reference=query.reference or "", agreement=share)
        for query, share in zip(consensus.queries, consensus.shares.tolist(), strict=True)
    }
    return references, votes, dict(dropped + consensus.dropped)


def query_counts(written: Writing, voting: Voting, usable: int) -> Writing:
    """The counts of a round's questions after voting: `usable` kept, and all dropped by reason."""
    dropped = Counter(written.dropped) + Counter(voting.dropped)
    return Writing(kept=usable, dropped=dict(dropped), cost_usd=written.cost_usd)


def agreement_summary(voting: Voting) -> Agreement:
    """Number of questions with a reference by votes, and the mean agreement on these."""
    shares = [one.agreement for one in voting.references.values()]
    return Agreement(settled=len(shares), mean=sum(shares) / max(len(shares), 1))
