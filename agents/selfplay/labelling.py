"""Asks chosen experts chosen queries live, within a limit, and makes a table of all answers so far.

A pair is a query and the name of an expert. K experts, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from experts.collect.scheduler import ask_all, queue_for
from experts.collect.store import Store, StoredExpert
from experts.collect.table import GradedAnswer, answer_rows, expert_info, query_rows
from experts.grading import GRADERS
from experts.pool import keys_for, make_experts
from experts.specs import ExpertSpec, Pool
from experts.spending import SpendCap
from experts.types import Answer, Expert, Query, TextEncoder
from leeroo_env.table import TableInfo

Pair = tuple[Query, str]
ROUNDING_USD = 1e-12


@dataclass
class Asker:
    """A pool's experts, the spend cap that they pay from and the store that keeps their answers.

    Attributes:
        versions: expert -> the round in which a change of it was noticed; answers of different versions are kept apart.
    """

    pool: Pool
    store: Store
    spend_cap: SpendCap = field(default_factory=SpendCap)
    versions: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.specs: dict[str, ExpertSpec] = {spec.name: spec for spec in self.pool.experts}
        self.experts: dict[str, Expert] = {e.name: e for e in make_experts(self.pool, None, self.spend_cap)}
        self._keys = {name: keys_for(spec) for name, spec in self.specs.items()}

    def key(self, expert: str) -> Callable[[Query], str]:
        """What answers of an expert are kept under: with those of before it changed nothing is found."""
        version, key = self.versions.get(expert, 0), self._keys[expert]
        return (lambda query: f"{key(query)}-{version}") if version else key

    def found(self, pair: Pair) -> Answer | None:
        """The answer that there is, if there is one."""
        query, expert = pair
        return self.store.found.get(self.key(expert)(query))

    def worst_usd(self, pair: Pair) -> float:
        """The most that a call can cost, every retry billed."""
        query, expert = pair
        spec = self.specs[expert]
        return spec.attempts * spec.worst_usd(query)

    def ask(self, pairs: Sequence[Pair], max_usd: float) -> float:
        """Asks the pairs in order as far as the money goes, and returns what their answers cost, in dollars.

        In waves: each takes as many as could be paid for at their worst. What an answer in the store has cost counts as
        if it were paid now, so a run that was killed asks the same pairs when it goes on, and pays for none twice.
        """
        spent_usd, rest = 0.0, list(pairs)
        while rest:
            wave = rest[: self._affordable(rest, max_usd - spent_usd)]
            if not wave:
                break
            before_usd = self.spend_cap.spent_usd
            self.spend_cap.max_usd = before_usd + max_usd - spent_usd
            new = [pair for pair in wave if self.found(pair) is None]
            self._ask_all(new)
            spent_usd += self._paid_usd(wave) + unanswered_usd(
                self.spend_cap.spent_usd - before_usd, self._paid_usd(new)
            )
            rest = rest[len(wave) :]
        return spent_usd

    def _paid_usd(self, pairs: Sequence[Pair]) -> float:
        return math.fsum(answer.cost_usd for pair in pairs if (answer := self.found(pair)))

    def _affordable(self, pairs: Iterable[Pair], usd: float) -> int:
        """How many of the first pairs `usd` pays for, if each costs the most that it can."""
        count = 0
        for pair in pairs:
            usd -= self.worst_usd(pair)
            if usd < 0:
                break
            count += 1
        return count

    def _ask_all(self, pairs: Sequence[Pair]) -> None:
        queues = []
        for name, expert in self.experts.items():
            queries = list({self.key(name)(query): query for query, asked in pairs if asked == name}.values())
            if queries:
                queues.append(queue_for(StoredExpert(expert, self.key(name), self.store), self.specs[name], queries))
        ask_all(queues, show_progress=False)


def unanswered_usd(billed_usd: float, answered_usd: float) -> float:
    """What was billed though no answer came, without what adding up leaves over."""
    rest_usd = billed_usd - answered_usd
    return rest_usd if rest_usd > ROUNDING_USD else 0.0


def build_table(
    name: str,
    pool: Pool,
    queries: Sequence[Query],
    answers: dict[tuple[str, str], Answer],
    grader: str,
    encoder: TextEncoder,
    agreement: Mapping[str, float],
) -> tuple[TableInfo, pa.Table, pa.Table, np.ndarray]:
    """What the files of a table directory hold.

    Args:
        answers: by query_id and expert; some may be missing.
        agreement: by query_id, of references that experts gave, the share that agrees: the column `agreement`.
    """
    by_id = {query.query_id: query for query in queries}
    rows = [
        GradedAnswer(expert, by_id[query_id], answer, GRADERS[grader](answer.text, by_id[query_id]))
        for (query_id, expert), answer in answers.items()
    ]
    embeddings = np.asarray(encoder.encode([query.text for query in queries])).astype(np.float16)
    info = TableInfo(
        format=1,
        name=name,
        description=f"{len(queries)} queries, {len(rows)} answers of {len(pool.experts)} experts, graded by {grader}",
        encoder=encoder.info,
        experts=tuple(expert_info(spec) for spec in pool.experts),
    )
    shares = pa.array([agreement.get(query.query_id) for query in queries], pa.float64())
    return info, query_rows(queries).append_column("agreement", shares), answer_rows(rows), embeddings
