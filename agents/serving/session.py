"""Answers queries with real experts under one budget: asks, compares the answers, and asks again or delivers.

B queries, K experts, M: the most answers a query, C = M - 1, F features of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from agents.serving.asking import ask_experts, can_take, is_limited, most_attempts, worst_attempt_usd
from agents.serving.breaker import NOT_ASKED, CircuitBreaker
from agents.serving.decider import Decider, Preference, QueryState
from agents.serving.purse import Purse
from agents.serving.reply import Reply
from experts.types import Chat, Expert, Query
from leeroo_env.dynamics import vote_weight

ROUNDING = 1 + 1e-9


class Session:
    """A stream of queries that a router answers with real experts from one budget.

    Attributes:
        purse: the dollars left; a call takes all that it was, or may have been, billed. Other sessions may share them.
        remaining_queries: queries left.
        max_calls: M.
    """

    def __init__(
        self,
        decider: Decider,
        experts: Sequence[Expert],
        purse: Purse,
        remaining_queries: int,
        breaker: CircuitBreaker,
        max_calls: int | None = None,
        first_choice: Callable[[QueryState, int], int] | None = None,
    ):
        """
        Args:
            decider: decides.
            experts: its K experts in order.
            purse, remaining_queries: as above.
            breaker: the circuit breaker that knows these experts.
            max_calls: as above; None: the decider's.
            first_choice: which expert to ask first, when the decider has chosen one; None: that one.
        """
        self.decider, self.experts, self.breaker = decider, experts, breaker
        self.purse, self.remaining_queries, self.first_choice = purse, remaining_queries, first_choice
        self.max_calls = decider.max_calls if max_calls is None else max_calls
        self.limited = [is_limited(expert) for expert in experts]
        self.attempts = [most_attempts(expert) for expert in experts]
        self.overrun = [1.0] * len(experts)  # the largest factor by which calls to each have cost more than their limit

    @property
    def remaining_usd(self) -> float:
        return self.purse.left_usd

    def answer(self, queries: Sequence[Query], features: Tensor, reliability: Tensor) -> list[Reply]:
        """Answers queries concurrently, in rounds of at most one call per query; calls to one expert are one batch.

        The router decides each query as if it were the next in the stream, with nothing spent on the others in
        progress: a single query is decided exactly as in an episode. A call may cost no more than what is left and not
        reserved by calls of the same round. If they may release what it would be cut off without, the query waits for
        the next round. A call that was cut off is one of the M, and brings no answer.
        Where the chosen expert failed, is left alone or cannot be paid, the next best is asked. A call that failed is
        none of the M, and no expert is asked twice about a query.

        Args:
            queries: B.
            features: [B, F], the router's input.
            reliability: [B, K] in [0, 1], the estimated probabilities that experts are right: the weights of votes.
        """
        states = self._states(queries, features, reliability)
        while open_states := [state for state in states if state.stop_reason is None]:
            if not self._round(open_states):
                self.purse.wait()
            self.remaining_queries -= sum(state.stop_reason is not None for state in open_states)
        return [self.decider.reply(state) for state in states]

    def answer_all(self, queries: Sequence[Query], features: Tensor, reliability: Tensor, at_once: int) -> list[Reply]:
        """`answer` with `at_once` queries in progress at a time."""
        parts = [slice(start, start + at_once) for start in range(0, len(queries), at_once)]
        return [reply for part in parts for reply in self.answer(queries[part], features[part], reliability[part])]

    def route(self, queries: Sequence[Query], features: Tensor, reliability: Tensor) -> list[int | None]:
        """The expert that would be asked first about each query, as if it were the next; None: none can be paid."""
        states = self._states(queries, features, reliability)
        for state in states:
            self._find_candidates(state)
        open_states = [state for state in states if state.stop_reason is None]
        seen = [self.remaining_usd] * len(open_states), [self.remaining_queries] * len(open_states)
        rankings = iter(self.decider.preferences(open_states, *seen))
        return [None if state.stop_reason else self._choice(state, next(rankings)) for state in states]

    def _states(self, queries: Sequence[Query], features: Tensor, reliability: Tensor) -> list[QueryState]:
        pairs = list(zip(self.experts, self.decider.mean_cost_usd, strict=True))
        worst_usd = [[worst_attempt_usd(*pair, query) for pair in pairs] for query in queries]
        rows = zip(queries, features, reliability, vote_weight(reliability), worst_usd, strict=True)
        return [QueryState(*row) for row in rows]

    def _choice(self, state: QueryState, preferences: Sequence[Preference]) -> int:
        """The expert to ask next, or K: deliver."""
        deliver = [len(self.experts)] if state.counted else []
        choice = max([*state.candidates, *deliver], key=preferences.__getitem__)
        return choice if self.first_choice is None or state.asked else self.first_choice(state, choice)

    def _round(self, states: Sequence[QueryState]) -> bool:
        """Makes at most one more call for each query in progress. False where all wait for other sessions' calls."""
        for state in states:
            self._find_candidates(state)
        states = [state for state in states if state.stop_reason is None]
        asks: dict[int, list[tuple[QueryState, float]]] = {}
        waiting = 0
        billed_usd = [state.billed_usd for state in states]
        seen_usd = [self.remaining_usd + sum(billed_usd) - own for own in billed_usd]
        rankings = self.decider.preferences(states, seen_usd, [self.remaining_queries] * len(states))
        for state, preferences in zip(states, rankings, strict=True):
            choice = self._choice(state, preferences)
            if choice == len(self.experts):
                state.stop_reason = "policy" if state.succeeded else "money"
                continue
            worst_usd = self._worst_usd(state, choice)
            limit_usd = self.purse.reserve(worst_usd, self.attempts[choice] * worst_usd)
            if limit_usd is None:
                waiting += 1
            elif self.breaker.admit(*self._names(choice)) or state.last_resort:
                state.resorts -= state.last_resort
                asks.setdefault(choice, []).append((state, limit_usd))
            else:
                self.purse.settle([limit_usd], [0.0])
        self._ask(asks)
        return waiting == 0 or bool(asks)

    def _find_candidates(self, state: QueryState) -> None:
        """Finds the experts that may be asked next; where there is none, the query stops.

        They were not asked yet, what is left pays for the prompt and a token, and they did not fail lately. Where all
        of them did and there is no answer yet, one is tried all the same.
        """
        able = [k for k, expert in enumerate(self.experts) if can_take(expert, state.query)]
        others = [k for k in able if k not in state.asked]
        affordable = [k for k in others if self._can_pay(state, k)]
        state.candidates = [k for k in affordable if not self.breaker.is_open(*self._names(k))]
        state.last_resort = not state.candidates and not state.succeeded and state.resorts > 0
        if state.last_resort:
            state.candidates = affordable
        if state.candidates:
            return
        made = any(not (result.error or "").startswith(NOT_ASKED) for result in state.results)
        if state.succeeded:
            state.stop_reason = "money" if len(affordable) < len(others) else "max calls"
        elif state.counted:
            state.stop_reason = "money"
        else:
            state.stop_reason = "failed" if made or affordable else "money"

    def _ask(self, asks: dict[int, list[tuple[QueryState, float]]]) -> None:
        """Asks experts about the queries of a round, each with the dollars that are reserved for the call."""
        queries = {k: [state.query for state, _ in calls] for k, calls in asks.items()}
        limits_usd = {k: [usd / self.overrun[k] for _, usd in calls] for k, calls in asks.items()}
        try:
            brought = ask_experts(self.experts, queries, limits_usd)
        except BaseException:  # such as Ctrl-C: the calls may be billed
            reserved = [usd for calls in asks.values() for _, usd in calls]
            self.purse.settle(reserved, reserved)
            raise
        for expert, answers in brought.items():
            name, entry = self._names(expert)
            self.breaker.record(name, answers, entry)
            self.purse.settle([usd for _, usd in asks[expert]], [answer.billed_usd for answer in answers])
            for (state, _), limit_usd, answer in zip(asks[expert], limits_usd[expert], answers, strict=True):
                if answer.billed_usd > limit_usd * ROUNDING > 0:
                    self.overrun[expert] = max(self.overrun[expert], answer.billed_usd / limit_usd)
                self.decider.add(state, expert, answer)
                needs = isinstance(state.query, Chat) and state.query.needs  # images and tools: as at the server
                if len(state.counted) == (1 if needs else self.max_calls):
                    state.stop_reason = "max calls" if state.succeeded else "money"

    def _names(self, expert: int) -> tuple[str, str]:
        """The names of an expert and of its model."""
        return self.decider.names[expert], self.decider.entries[expert]

    def _worst_usd(self, state: QueryState, expert: int) -> float:
        """The most that one attempt of a call can be billed, as far as it is known."""
        return state.worst_usd[expert] * self.overrun[expert]

    def _can_pay(self, state: QueryState, expert: int) -> bool:
        """Whether what is left pays for a call, even if it is cut off; of an expert without limits for a mean one."""
        if self._worst_usd(state, expert) <= self.remaining_usd:
            return True
        spec: Any = getattr(self.experts[expert], "spec", None)
        limit_usd = self.remaining_usd / self.overrun[expert]
        return self.limited[expert] and bool(spec.may_afford(state.query, limit_usd))
