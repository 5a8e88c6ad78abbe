"""Answers for an orchestrator that was loaded with a pool: its experts, its money, and who answered before.

B queries, K experts, F features of a query.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy.typing as npt
from torch import Tensor

from agents.serving.answer_match import Compare
from agents.serving.chat import PoolExpert, ReplyStream, as_chat
from agents.serving.checks import as_compare, as_embeddings, as_texts, check_stream
from agents.serving.conversation import conversation_key, earlier_text, in_tool_round, next_key
from agents.serving.decider import QueryState
from agents.serving.outlook import cache_discount_usd, no_easier, reason, stays, usd_price
from agents.serving.purse import Purse
from agents.serving.reply import Reply, Route
from agents.serving.session import Session
from experts.live import make_live_experts
from experts.specs import Pool
from experts.types import Chat, Query
from leeroo_env.errors import InputError

if TYPE_CHECKING:
    from agents.serving.orchestrator import Orchestrator

MOST_CONVERSATIONS = 10_000
OWN_KEY = 0  # in place of an API key's number: all conversations are of one program


@dataclass
class Live:
    """The experts of a pool and the dollars that they share. Safe to use from several threads.

    Attributes:
        orchestrator: decides.
        pool: of its experts.
        experts: those that were made, by name.
        purse: what is left.
        usd_per_query: the most that a query may cost in the mean; None: what is left may all be spent.
        compare: how answers are compared if nothing else is asked for.
    """

    orchestrator: Orchestrator
    pool: Pool
    purse: Purse
    usd_per_query: float | None
    compare: str
    experts: dict[str, PoolExpert] = field(default_factory=dict)
    _answered: OrderedDict[str, str] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def make_experts(self) -> list[PoolExpert]:
        """The orchestrator's K experts in order. Raises InputError where the pool lacks one, or it cannot be made."""
        names = self.orchestrator.experts
        with self._lock:
            missing = [name for name in names if name not in self.experts]  # also after `add_expert`
            self.experts |= {live.name: PoolExpert(live) for live in make_live_experts(self.pool, missing)}
        return [self.experts[name] for name in names]

    def answer(
        self,
        queries: Sequence[Query],
        remaining_queries: int | None,
        compare: str | Compare | None,
        embeddings: npt.ArrayLike | None,
        at_once: int,
    ) -> list[Reply]:
        """See `Orchestrator.answer`."""
        session = self._session(len(queries), remaining_queries, compare, at_once)
        if not queries:
            return []
        return self._replies(session, queries, *self._read(queries, embeddings), at_once)

    def route(self, queries: Sequence[Query], remaining_queries: int | None) -> list[Route]:
        """See `Orchestrator.route`."""
        session = self._session(len(queries), remaining_queries)
        if not queries:
            return []
        chats, features = self._read(queries)
        choices = session.route(chats, features, self.orchestrator.reliability(features))
        price = usd_price(self.orchestrator.policy, session.remaining_usd, session.remaining_queries)
        return [self._route(*row, price) for row in zip(queries, chats, choices, features, strict=True)]

    def stream(self, query: Query) -> ReplyStream:
        """See `Orchestrator.stream`."""
        session = self._session(1)
        session.max_calls = 1
        chats, features = self._read([query])

        def work(on_text: Callable[[str], None]) -> Reply:
            session.experts = [expert.streaming(on_text) for expert in self.make_experts()]
            return self._replies(session, [query], chats, features, 1)[0]

        return ReplyStream(work)

    def _session(
        self,
        n: int,
        remaining_queries: int | None = None,
        compare: str | Compare | None = None,
        at_once: int = 1,
    ) -> Session:
        """A session for n queries with what is left. Raises InputError."""
        orchestrator, left_usd = self.orchestrator, self.purse.left_usd
        pace = n if self.usd_per_query is None else round(left_usd / self.usd_per_query)
        remaining = max(n, pace) if remaining_queries is None else remaining_queries
        check_stream(left_usd, remaining, at_once, n)
        decider = orchestrator.decider(as_compare(self.compare if compare is None else compare))
        session = Session(decider, self.make_experts(), self.purse, remaining, orchestrator.breaker)
        session.first_choice = lambda state, choice: self._first_choice(state, choice, session.remaining_queries)
        return session

    def _read(self, queries: Sequence[Query], embeddings: npt.ArrayLike | None = None) -> tuple[list[Chat], Tensor]:
        """B queries as the experts take them, and what the policy sees of them: [B, F]. Raises InputError.

        A turn that follows others is taken to be no easier than the turn before.
        """
        orchestrator = self.orchestrator
        chats = [as_chat(query, f"queries[{i}]") for i, query in enumerate(queries)]
        for i, chat in enumerate(chats):
            if not any(self.experts[name].spec.can_take(chat) for name in orchestrator.experts):
                needs = ", ".join([*chat.needs, f"a context of more than {chat.tokens} tokens"])
                raise InputError(f"queries[{i}]: no expert of this pool can do what it needs: {needs}")
        texts, domains = [chat.text for chat in chats], [chat.domain for chat in chats]
        x = as_embeddings(orchestrator.encode(texts) if embeddings is None else embeddings, orchestrator.embedding_dim)
        features = orchestrator.features(x, as_texts(texts, len(x)), domains)
        following = {i: text for i, chat in enumerate(chats) if (text := earlier_text(chat.messages)) is not None}
        if following and orchestrator.predictor is not None:
            rows, before = list(following), list(following.values())
            earlier = orchestrator.features(orchestrator.encode(before), before, [domains[i] for i in rows])
            features[rows] = no_easier(features[rows], earlier, len(orchestrator.experts))
        return chats, features

    def _replies(
        self, session: Session, queries: Sequence[Query], chats: Sequence[Chat], features: Tensor, at_once: int
    ) -> list[Reply]:
        """The replies to B queries, which were read as `chats`."""
        replies = session.answer_all(chats, features, self.orchestrator.reliability(features), at_once)
        for chat, reply in zip(chats, replies, strict=True):
            self._remember(chat, reply)
        return [replace(reply, query=query) for reply, query in zip(replies, queries, strict=True)]

    def _route(self, query: Query, chat: Chat, choice: int | None, features: Tensor, price: float | None) -> Route:
        names = self.orchestrator.experts
        score, cost_usd = self.orchestrator.estimates(features)
        expert = None if choice is None else names[choice]
        goes_on = expert is not None and expert == self._expert_of(chat)
        return Route(
            query=query,
            expert=expert,
            score=None if score is None else dict(zip(names, score, strict=True)),
            cost_usd=dict(zip(names, cost_usd, strict=True)),
            usd_price=price,
            why="goes on with the conversation" if goes_on else reason(names, choice, score, cost_usd),
        )

    def _first_choice(self, state: QueryState, choice: int, queries: int) -> int:
        """The expert of the conversation so far where a switch does not pay, else the policy's choice."""
        orchestrator, chat = self.orchestrator, state.query
        name = self._expert_of(chat) if isinstance(chat, Chat) else None
        if name not in orchestrator.experts or not isinstance(chat, Chat):
            return choice
        current = orchestrator.experts.index(name)
        if current not in state.candidates:
            return choice
        score, cost_usd = orchestrator.estimates(state.features)
        lost_usd = cache_discount_usd(self.experts[name].spec.price, chat.tokens)
        price = usd_price(orchestrator.policy, self.purse.left_usd, queries)
        keeps = in_tool_round(chat.messages) or stays(score, cost_usd, price, choice, current, lost_usd)
        return current if keeps else choice

    def _remember(self, chat: Chat, reply: Reply) -> None:
        """Remembers whose answer a conversation may go on with."""
        if reply.text is None or reply.expert is None:
            return
        answer = {"role": "assistant", "content": reply.text}
        with self._lock:
            self._answered[next_key(OWN_KEY, chat.messages, answer)] = reply.expert
            while len(self._answered) > MOST_CONVERSATIONS:
                self._answered.popitem(last=False)

    def _expert_of(self, chat: Chat) -> str | None:
        """Whose answer a conversation goes on with, as far as that is known."""
        key = conversation_key(OWN_KEY, chat.messages)
        with self._lock:
            return None if key is None else self._answered.get(key)
