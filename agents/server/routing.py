"""Decides which expert a request goes to: batched, from what its text tells, what is left, and where it was before.

K experts, D embedding, F features of a query.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from agents.server.batching import Batcher
from agents.serving.answer_match import Compare
from agents.serving.decider import Preference, QueryState
from agents.serving.orchestrator import Orchestrator
from agents.serving.outlook import no_easier, stays, usd_price
from experts.embedding_cache import digest
from experts.types import Query
from leeroo_env.dynamics import vote_weight

CACHED_TEXTS = 4_096
MOST_AT_ONCE = 64


@dataclass(frozen=True)
class Money:
    """What a decision may count on.

    Attributes:
        usd: dollars left.
        queries: how many queries these must last for, this one included.
    """

    usd: float
    queries: int


@dataclass
class Plan:
    """What is known of one request before and while experts are asked.

    Attributes:
        query: its text, as the encoder sees it, and its domain, if the client names one.
        earlier: the same of the conversation one turn ago; None for the first turn.
        embedding: [D], where the client has one; None: the text is encoded.
        state: the policy's view, with the calls so far; None until the first decision.
        score: [K], estimated chances that experts are right; None where the policy estimates none.
        cost_usd: [K], estimated costs.
    """

    query: Query
    earlier: str | None = None
    embedding: np.ndarray | None = None
    state: QueryState | None = None
    score: list[float] | None = None
    cost_usd: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Item:
    plan: Plan
    money: Money
    candidates: list[int]


class Planner:
    """Ranks experts with a trained orchestrator, all requests that wait at the same time in one batch."""

    def __init__(self, orchestrator: Orchestrator, compare: Compare, usd_per_query: float | None = None):
        """Args: the orchestrator, how answers are compared, and the most that a query may cost in the mean; None: what
        is left may all be spent."""
        self.orchestrator = orchestrator
        self.decider = orchestrator.decider(compare)
        self.usd_per_query = usd_per_query
        self._known: OrderedDict[bytes | int, Tensor] = OrderedDict()  # features, by a digest as texts may be long
        self._batcher: Batcher[_Item, list[Preference]] = Batcher(self._rank, MOST_AT_ONCE, "decisions")

    @property
    def max_calls(self) -> int:
        return self.decider.max_calls

    def money(self, left_usd: float | None, queries: int) -> Money:
        """What the policy sees of a key with this much left, None for no limit, and these queries expected."""
        pace = float("inf") if self.usd_per_query is None else self.usd_per_query * queries
        usd = min(pace, float("inf") if left_usd is None else left_usd)
        most = max(self.orchestrator.description.mean_cost_usd) * queries * self.max_calls
        return Money(min(usd, 10 * most), queries)

    async def rank(self, plan: Plan, money: Money, candidates: Sequence[int]) -> list[Preference]:
        """How much each of K experts is preferred, and delivering; the first time the plan's estimates are filled in.

        Args:
            plan: of the request.
            money: what it may count on, before any of its calls.
            candidates: the experts that may be asked next.
        """
        return await self._batcher.submit(_Item(plan, money, list(candidates)))

    def stays(self, plan: Plan, money: Money, choice: int, current: int, lost_usd: float) -> bool:
        """Whether a conversation stays with its current expert; see `agents.serving.outlook.stays`.

        Args:
            plan: decided.
            money: what it may count on.
            choice: the policy's.
            current: the expert of the turn before.
            lost_usd: the discount on cached tokens that a switch loses.
        """
        if choice == current:
            return True
        return stays(plan.score, plan.cost_usd, self.usd_price(money), choice, current, lost_usd)

    def usd_price(self, money: Money) -> float | None:
        """What the next dollars are worth in score, by the policy's budget value; None where it has none."""
        return usd_price(self.orchestrator.policy, money.usd, money.queries)

    def warm_up(self) -> None:
        """Loads the encoder and runs everything once, so that the first request waits for nothing."""
        plan = Plan(Query("", "How far is it?"), "Where is the station?")
        self._rank([_Item(plan, self.money(None, 1), list(range(len(self.decider.names))))])

    def close(self) -> None:
        self._batcher.close()

    @torch.inference_mode()
    def _rank(self, items: Sequence[_Item]) -> list[list[Preference]]:
        new = [item for item in items if item.plan.state is None]
        if new:
            self._begin(new)
        states = []
        for item in items:
            assert item.plan.state is not None
            item.plan.state.candidates = item.candidates
            states.append(item.plan.state)
        usd = [item.money.usd for item in items]
        queries = [item.money.queries for item in items]
        return self.decider.preferences(states, usd, queries)

    def _begin(self, items: Sequence[_Item]) -> None:
        """Estimates what the experts can do for new requests."""
        plans = [item.plan for item in items]
        features = self._features([plan.query for plan in plans], [plan.embedding for plan in plans])
        k = len(self.orchestrator.experts)
        estimated = self.orchestrator.predictor is not None
        following = [i for i, plan in enumerate(plans) if plan.earlier is not None] if estimated else []
        if following:
            earlier = [replace(plans[i].query, text=plans[i].earlier or "") for i in following]
            before = self._features(earlier, [None] * len(earlier))
            features[following] = no_easier(features[following], before, k)
        reliability = self.orchestrator.reliability(features)
        rows = zip(items, features, reliability, vote_weight(reliability), strict=True)
        for item, feature, reliable, votes in rows:
            plan = item.plan
            plan.state = QueryState(plan.query, feature, reliable, votes)
            plan.score, plan.cost_usd = self.orchestrator.estimates(feature)

    def _features(self, queries: Sequence[Query], embeddings: Sequence[np.ndarray | None]) -> Tensor:
        """The policy's features of queries, [B, F]; those of a text that came lately are known."""
        keys = [
            digest(f"{query.domain}\0{query.text}") if embedding is None else i
            for i, (query, embedding) in enumerate(zip(queries, embeddings, strict=True))
        ]
        new = {
            key: (query, embedding)
            for key, query, embedding in zip(keys, queries, embeddings, strict=True)
            if key not in self._known
        }
        found: dict[bytes | int, Tensor] = dict(zip(new, self._computed(list(new.values())), strict=True))
        rows = [found[key] if key in found else self._known[key] for key in keys]
        for key, row in zip(keys, rows, strict=True):
            if not isinstance(key, int):
                self._known[key] = row
                self._known.move_to_end(key)
        while len(self._known) > CACHED_TEXTS:
            self._known.popitem(last=False)
        return torch.stack(rows)

    def _computed(self, pairs: Sequence[tuple[Query, np.ndarray | None]]) -> Sequence[Tensor]:
        """The features of queries with or without an embedding; n of [F]."""
        if not pairs:
            return []
        missing = [query.text for query, embedding in pairs if embedding is None]
        encoded = iter(self.orchestrator.encode(missing) if missing else ())
        x = np.stack([next(encoded) if embedding is None else embedding for _, embedding in pairs])
        texts, domains = [query.text for query, _ in pairs], [query.domain for query, _ in pairs]
        return list(self.orchestrator.features(x, texts, domains))
