"""Builds the table of all answers of a self-play run so far.

N queries, K experts, D embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from agents.selfplay.context import SelfPlay
from agents.selfplay.labelling import Pair
from agents.selfplay.records import ChosenPairs, PairId
from experts.collect.table import GradedAnswer, answer_rows, expert_info, query_rows
from experts.grading import GRADERS
from experts.types import Answer, Query
from leeroo_env import ExpertTable, InputError
from leeroo_env.table import TableInfo

TableParts = tuple[TableInfo, pa.Table, pa.Table, np.ndarray]  # table.json, queries, answers, embeddings [N, D]


def table_parts(selfplay: SelfPlay, number: int, changed: Sequence[str], held_out: Sequence[Query]) -> TableParts:
    """The parts of a table of all answers up to a round: to held-out queries, then to training queries.

    Of experts that changed, only the answers since then are in it. Training queries without any answer, and held-out
    queries without every expert's answer, are left out.

    Args:
        changed: the experts that were found to have changed in this round.

    Raises:
        InputError: there are held-out queries, but none has every expert's answer.
    """
    asker = selfplay.asker
    changed_in = selfplay.expert_versions(number) | {name: number for name in changed}
    answers: dict[PairId, Answer] = {}
    agreement: dict[str, float] = {}

    def add(pairs: Iterable[Pair], of_round: int) -> None:
        for query, name in pairs:
            answer = asker.found((query, name))
            if answer is not None and of_round >= changed_in.get(name, 0):
                answers[query.query_id, name] = answer

    for earlier in range(number + 1):
        asker.versions = selfplay.expert_versions(earlier)
        voting = selfplay.voting(earlier)
        chosen = ChosenPairs.read(selfplay.directory(earlier) / "asks.json")
        add(selfplay.as_pairs(earlier, voting.votes + chosen.explore + chosen.aim), earlier)
        agreement |= {query_id: one.agreement for query_id, one in voting.references.items()}
    asker.versions = changed_in
    add(selfplay.all_experts_pairs(held_out), number)
    count = Counter(query_id for query_id, _ in answers)
    complete = [query for query in held_out if count[query.query_id] == len(asker.specs)]
    if held_out and not complete:
        raise InputError(
            f"{selfplay.config.run_dir}: no {held_out[0].split} query has every expert's answer (calls fail, or "
            "--usd-to-begin is too little); the same command asks again"
        )
    queries = complete + [query for query in selfplay.training_queries(number + 1) if count[query.query_id]]
    return build_table(selfplay, f"{selfplay.config.run_dir.name}-{number}", queries, answers, agreement)


def build_table(
    selfplay: SelfPlay,
    name: str,
    queries: Sequence[Query],
    answers: Mapping[PairId, Answer],
    agreement: Mapping[str, float],
) -> TableParts:
    """The parts of a table of N queries.

    Args:
        answers: answers to other queries are left out.
        agreement: by query_id, of references that were voted on: the column `agreement`.
    """
    grader, specs = selfplay.config.grader, selfplay.asker.pool.experts
    by_id = {query.query_id: query for query in queries}
    rows = [
        GradedAnswer(expert, by_id[query_id], answer, GRADERS[grader](answer.text, by_id[query_id]))
        for (query_id, expert), answer in answers.items()
        if query_id in by_id
    ]
    embeddings = np.asarray(selfplay.encoder.encode([query.text for query in queries])).astype(np.float16)
    info = TableInfo(
        format=1,
        name=name,
        description=f"{len(queries)} queries, {len(rows)} answers of {len(specs)} experts, graded by {grader}",
        encoder=selfplay.encoder.info,
        experts=tuple(expert_info(spec) for spec in specs),
    )
    shares = pa.array([agreement.get(query.query_id) for query in queries], pa.float64())
    return info, query_rows(queries).append_column("agreement", shares), answer_rows(rows), embeddings


def coverage(table: ExpertTable, answered: Tensor) -> dict[str, dict[str, int]]:
    """Number of training answers by domain and expert; `answered` is [N, K] bool."""
    domains = np.array(table.queries["domain"].to_pylist())
    train = (table.split == 0).numpy()
    counts = {}
    for domain in sorted(set(domains[train].tolist())):
        by_expert = answered[torch.from_numpy(train & (domains == domain))].sum(dim=0).tolist()
        counts[domain] = dict(zip(table.experts, by_expert, strict=True))
    return counts
