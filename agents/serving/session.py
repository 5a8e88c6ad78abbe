"""Answers queries with real experts under one budget: asks, compares the answers, and asks again or delivers.

B queries, K experts, M: the most calls a query, C = M - 1, F features of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from agents.policies.answer_model import Calls, calls_from_features
from agents.routers.base import Context, Router
from agents.serving.answer_match import Compare
from experts.specs import LocalSpec
from experts.spending import NOT_ASKED, not_asked
from experts.types import Answer, Expert, Query
from leeroo_env.dynamics import VoteCount, call_features, count_votes, vote_weight

ASKED_BEFORE = "not asked: it was asked about this query before"
Stop = Literal["policy", "max calls", "money"]


@dataclass(frozen=True)
class Call:
    """One call about one query.

    Attributes:
        expert: its name.
        output: the text it returned.
        answer: the short answer in the output, in normal form: equal strings are equal answers. None if there is none.
        agrees: whether this is the delivered answer.
        error: why there is no output: the call failed, or was not made. Its cost is then 0.
    """

    expert: str
    output: str
    answer: str | None
    agrees: bool
    cost_usd: float
    latency_s: float
    prompt_tokens: int
    completion_tokens: int
    error: str | None


@dataclass(frozen=True)
class Reply:
    """The delivered answer to a query, and the calls behind it.

    Attributes:
        query: the query.
        text: the delivered output; None if no expert answered.
        answer: the short answer in it, in normal form; None if there is none.
        expert: the expert that gave the delivered output.
        calls: the calls for this query, in order.
        stopped: why no further call was made. "policy": the policy chose to deliver. "max calls": the most calls were
            made. "money": the remaining budget does not cover any further expert, or did not cover the last call.
    """

    query: Query
    text: str | None
    answer: str | None
    expert: str | None
    calls: tuple[Call, ...]
    stopped: Stop

    @property
    def cost_usd(self) -> float:
        return sum(call.cost_usd for call in self.calls)

    @property
    def latency_s(self) -> float:
        """Sum over the calls, which are made one after another."""
        return sum(call.latency_s for call in self.calls)

    @property
    def supporters(self) -> list[str]:
        """The experts that gave the delivered answer."""
        return [call.expert for call in self.calls if call.agrees]


@dataclass
class QueryState:
    """A query in progress and its calls so far: experts asked, what they returned, and the answers in that."""

    query: Query
    features: Tensor  # [F]
    vote_weights: Tensor  # [K]
    asked: list[int] = field(default_factory=list)
    results: list[Answer] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    stopped: Stop | None = None

    @property
    def spent_usd(self) -> float:
        return sum(answer.cost_usd for answer in self.results)

    @property
    def answered(self) -> bool:
        return any(answer.error is None for answer in self.results)

    def add(self, expert: int, answer: Answer, compare: Compare) -> None:
        """Adds a call, and compares all answers again. A failed call gives no answer."""
        self.asked.append(expert)
        self.results.append(answer)
        succeeded = [i for i, result in enumerate(self.results) if result.error is None]
        answers = compare(self.query, [self.results[i].text for i in succeeded])
        self.answers = [None] * len(self.results)
        for i, text in zip(succeeded, answers, strict=True):
            self.answers[i] = text

    def groups(self) -> list[int]:
        """For each call the index of the first call with the same answer; -1 where it gave none."""
        return [-1 if answer is None else self.answers.index(answer) for answer in self.answers]


class Session:
    """A stream of queries that a router answers with real experts from one budget.

    Attributes:
        remaining_usd: dollars left.
        remaining_queries: queries left.
    """

    def __init__(
        self,
        router: Router,
        experts: Sequence[Expert],
        mean_cost_usd: Sequence[float],
        compare: Compare,
        remaining_usd: float,
        remaining_queries: int,
    ):
        """Args: a router (`agents.routers.Router`), its K experts in order, their mean costs, and the above."""
        self.router, self.experts, self.mean_cost_usd, self.compare = router, experts, mean_cost_usd, compare
        self.remaining_usd, self.remaining_queries = remaining_usd, remaining_queries
        self.max_calls: int = router.max_calls

    def answer(self, queries: Sequence[Query], features: Tensor, reliability: Tensor) -> list[Reply]:
        """Answers queries concurrently, in rounds of at most one call per query; calls to one expert are one batch.

        The router decides each query as if it were the next in the stream, with nothing spent on the others in
        progress: a single query is decided exactly as in an episode. No call is made whose worst-case cost exceeds the
        remaining budget. If calls of the same round may still release enough of it, the query waits for the next round;
        if the query has no answer yet, the most reliable affordable expert is asked instead.

        Args:
            queries: B.
            features: [B, F], the router's input.
            reliability: [B, K] in [0, 1], the estimated probabilities that experts are right: the weights of votes.
        """
        states = [QueryState(*row) for row in zip(queries, features, vote_weight(reliability), strict=True)]
        while open_states := [state for state in states if state.stopped is None]:
            self._round(open_states)
            self.remaining_queries -= sum(state.stopped is not None for state in open_states)
        return [self._reply(state) for state in states]

    def _round(self, states: Sequence[QueryState]) -> None:
        """Makes at most one more call for each query in progress."""
        for state in states:
            if len(state.asked) < len(self.experts) and not self._affordable(state):
                state.stopped = "money"
        states = [state for state in states if state.stopped is None]
        asks: dict[int, list[QueryState]] = {}
        reserved_usd = 0.0
        for state, choice in zip(states, self._choices(states), strict=True):
            expert = self._affordable_choice(state, choice)
            if expert == len(self.experts):
                state.stopped = "policy"
            elif expert in state.asked:
                state.add(expert, Answer("", 0, 0, 0.0, 0.0, ASKED_BEFORE), self.compare)
            elif (worst_usd := self._worst_usd(expert, state.query)) > self.remaining_usd:
                state.add(expert, not_asked(), self.compare)
            elif reserved_usd + worst_usd <= self.remaining_usd:
                reserved_usd += worst_usd
                asks.setdefault(expert, []).append(state)
        for expert, answers in self._ask(asks).items():
            self.remaining_usd = max(0.0, self.remaining_usd - sum(answer.cost_usd for answer in answers))
            for state, answer in zip(asks[expert], answers, strict=True):
                state.add(expert, answer, self.compare)
        for state in states:
            if state.stopped is None and len(state.results) == self.max_calls:
                state.stopped = "money" if state.results[-1].error == NOT_ASKED else "max calls"

    def _choices(self, states: Sequence[QueryState]) -> list[int]:
        """The expert that the router chooses for each query; K delivers."""
        if not states:
            return []
        features = torch.stack([state.features for state in states])
        spent_usd = [state.spent_usd for state in states]
        remaining_usd = torch.tensor(
            [self.remaining_usd + sum(spent_usd) - own for own in spent_usd], dtype=torch.float64
        )
        remaining = torch.full((len(states),), self.remaining_queries)
        calls = self._calls(states) if self.max_calls > 1 else None
        context = Context(features, remaining_usd.to(features.device), remaining.to(features.device), calls)
        return self.router.choose(context).tolist()

    def _calls(self, states: Sequence[QueryState]) -> Calls:
        """The calls so far, as the router's input."""
        asked, answered, polled = votes_of(states, self.max_calls - 1)
        return calls_from_features(
            call_features(len(self.experts), asked, answered, polled, self.max_calls), self.max_calls
        )

    def _affordable(self, state: QueryState) -> list[int]:
        """The experts not asked yet whose worst-case cost the remaining budget covers."""
        others = (k for k in range(len(self.experts)) if k not in state.asked)
        return [k for k in others if self._worst_usd(k, state.query) <= self.remaining_usd]

    def _affordable_choice(self, state: QueryState, choice: int) -> int:
        """The choice; if it is unaffordable and the query has no answer yet, the most reliable affordable expert."""
        others = self._affordable(state)
        if choice == len(self.experts) or choice in others or state.answered or not others:
            return choice
        return max(others, key=lambda k: (float(state.vote_weights[k]), self.mean_cost_usd[k]))

    def _worst_usd(self, expert: int, query: Query) -> float:
        """The most that a call can cost; of an expert without a `spec`, its mean cost."""
        spec = getattr(self.experts[expert], "spec", None)
        return self.mean_cost_usd[expert] if spec is None else spec.worst_usd(query)

    def _ask(self, asks: dict[int, list[QueryState]]) -> dict[int, list[Answer]]:
        """Asks each expert its queries in one batch: servers concurrently, local models one after the other."""
        queries = {k: [state.query for state in states] for k, states in asks.items()}
        local = [k for k in asks if isinstance(getattr(self.experts[k], "spec", None), LocalSpec)]
        with ThreadPoolExecutor(len(asks) or 1) as pool:
            served = {k: pool.submit(_answers, self.experts[k], queries[k]) for k in asks if k not in local}
            answers = {k: _answers(self.experts[k], queries[k]) for k in local}
        return answers | {k: future.result() for k, future in served.items()}

    def _reply(self, state: QueryState) -> Reply:
        assert state.stopped is not None
        _, _, polled = votes_of([state], self.max_calls)
        leader = int(polled.leader)
        delivered = state.asked.index(leader) if leader >= 0 else None
        agrees = polled.agrees[0].tolist()[: len(state.asked)]
        calls = zip(state.asked, state.results, state.answers, agrees, strict=True)
        return Reply(
            query=state.query,
            text=None if delivered is None else state.results[delivered].text,
            answer=None if delivered is None else state.answers[delivered],
            expert=None if delivered is None else self.experts[leader].name,
            calls=tuple(_call(self.experts[k].name, *rest) for k, *rest in calls),
            stopped=state.stopped,
        )


def votes_of(states: Sequence[QueryState], width: int) -> tuple[Tensor, Tensor, VoteCount]:
    """Experts asked [B, `width`], whether each call succeeded [B, `width`], and the vote count, as in an episode."""
    device = states[0].vote_weights.device
    asked, groups = (
        _padded(rows, width).to(device)
        for rows in ([state.asked for state in states], [state.groups() for state in states])
    )
    answered = _padded([[result.error is None for result in state.results] for state in states], width).to(device) > 0
    votes = torch.stack([state.vote_weights for state in states]).gather(1, asked.clamp(min=0))
    return asked, answered, count_votes(asked, answered, groups, votes)


def _call(expert: str, result: Answer, answer: str | None, agrees: bool) -> Call:
    return Call(
        expert=expert,
        output=result.text,
        answer=answer,
        agrees=agrees,
        cost_usd=result.cost_usd,
        latency_s=result.latency_s,
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        error=result.error,
    )


def _answers(expert: Expert, queries: Sequence[Query]) -> list[Answer]:
    """The expert's answers; an exception becomes failed calls, so that other experts' answers are not lost."""
    try:
        answers = expert.answer(queries)
        if len(answers) != len(queries):
            raise ValueError(f"{len(answers)} answers to {len(queries)} queries")
        return answers
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return [Answer("", 0, 0, 0.0, 0.0, reason) for _ in queries]


def _padded(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """[B, width] int64, -1 where a row is shorter."""
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows], dtype=torch.int64)
