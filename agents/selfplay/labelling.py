"""Asks experts about chosen queries within a limit of dollars, and keeps their answers.

A pair is a query and the name of an expert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from agents.selfplay.records import LiveScore
from experts.cluster.connect import Cluster
from experts.collect.scheduler import ask_all, queue_for
from experts.collect.store import Store, StoredExpert
from experts.collect.table import GradedAnswer
from experts.grading import GRADERS
from experts.pool import keys_for, make_experts
from experts.specs import ExpertSpec, Pool
from experts.spending import SpendCap
from experts.types import Answer, Expert, Query

Pair = tuple[Query, str]


@dataclass
class Asker:
    """A pool's experts, the spend cap that they share, and the store that keeps their answers.

    Attributes:
        cluster: whose workers ask; None: this program does.
        versions: expert -> the round in which a change of it was noticed; answers of different versions are kept apart.
    """

    pool: Pool
    store: Store
    cluster: Cluster | None = None
    spend_cap: SpendCap = field(default_factory=SpendCap)
    versions: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.specs: dict[str, ExpertSpec] = {spec.name: spec for spec in self.pool.experts}
        make = self.cluster.experts if self.cluster else make_experts
        self.experts: dict[str, Expert] = {e.name: e for e in make(self.pool, None, self.spend_cap)}
        self._keys = {name: keys_for(spec) for name, spec in self.specs.items()}

    def key(self, expert: str) -> Callable[[Query], str]:
        """The store's key of an expert's answers; another one after the expert has changed."""
        version, key = self.versions.get(expert, 0), self._keys[expert]
        return (lambda query: f"{key(query)}-{version}") if version else key

    def found(self, pair: Pair) -> Answer | None:
        """The stored answer; None if there is none."""
        query, expert = pair
        return self.store.found.get(self.key(expert)(query))

    def worst_usd(self, pair: Pair) -> float:
        """The most that a call can cost, with every retry billed."""
        query, expert = pair
        spec = self.specs[expert]
        return spec.attempts * spec.worst_usd(query)

    def ask(self, pairs: Sequence[Pair], max_usd: float, label: str) -> float:
        """Asks the pairs in order until `max_usd` does not cover the next, and returns what they were billed.

        In waves, each of as many pairs as the remaining dollars cover in the worst case. Stored answers are not asked
        again, but count at their cost, and so do attempts that failed: a killed run asks the same pairs when it is
        resumed. What was in flight when it was killed is not known and not counted.

        Args:
            label: what the pairs are asked for, the same when a killed run is resumed and not used for anything else.
        """
        self.store.label = label
        answered_usd, rest = 0.0, list(pairs)
        while rest:
            left_usd = max_usd - answered_usd - self.store.lost_usd[label]
            wave = rest[: self._affordable(rest, left_usd)]
            if not wave:
                break
            self.spend_cap.max_usd = self.spend_cap.spent_usd + left_usd
            self._ask_all([pair for pair in wave if self.found(pair) is None])
            answered_usd += self._answered_usd(wave)
            rest = rest[len(wave) :]
        return answered_usd + self.store.lost_usd[label]

    def _answered_usd(self, pairs: Sequence[Pair]) -> float:
        return math.fsum(answer.cost_usd for pair in pairs if (answer := self.found(pair)))

    def _affordable(self, pairs: Iterable[Pair], usd: float) -> int:
        """The number of first pairs whose worst-case costs `usd` covers."""
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


def graded_answers(asker: Asker, pairs: Iterable[Pair], grader: str) -> list[GradedAnswer]:
    """The stored answers to these pairs, graded; pairs without an answer are left out."""
    answered = [(query, name, answer) for query, name in pairs if (answer := asker.found((query, name)))]
    return [GradedAnswer(name, query, a, GRADERS[grader](a.text, query)) for query, name, a in answered]


def live_score(graded: Sequence[GradedAnswer]) -> LiveScore:
    """Number of answers, mean score and mean cost."""
    n = max(len(graded), 1)
    return LiveScore(
        answers=len(graded),
        score=sum(one.grade.score for one in graded) / n,
        cost_usd=sum(one.answer.cost_usd for one in graded) / n,
    )
