"""Routing with real experts: ask, compare the answers, ask on or deliver.

B queries, K experts, M: the most calls a query, C = M - 1, F features of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from agents.policies.answer_model import Calls, calls_from_features
from agents.serving.answer_match import Compare
from experts.specs import LocalSpec
from experts.spending import NOT_ASKED, not_asked
from experts.types import Answer, Expert, Query
from leeroo_env.dynamics import Poll, poll, poll_features, vote_weight

ASKED_BEFORE = "not asked: it was asked about this query before"
Stop = Literal["policy", "max calls", "money"]


@dataclass(frozen=True)
class Call:
    """One call about one query.

    Attributes:
        expert: whom.
        output: what it said.
        answer: the short answer in this, in normal form: equal strings are equal answers. None where it gave none.
        agrees: whether this is the answer that was delivered.
        error: why there is no output: the call failed, or was not made. It then cost nothing.
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
    """What became of a query.

    Attributes:
        query: the query.
        text: the output that is delivered; None where nobody answered.
        answer: the short answer in this, in normal form; None where it holds none.
        expert: whose output it is.
        calls: those made about the query, in order.
        stopped: why no more were made. "policy": it chose to deliver. "max calls": as many as it may make. "money":
            what is left pays for no further expert, or did not for the last call.
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
        """What the calls took, one after another."""
        return sum(call.latency_s for call in self.calls)

    @property
    def supporters(self) -> list[str]:
        """The experts that gave the delivered answer."""
        return [call.expert for call in self.calls if call.agrees]


@dataclass
class QueryState:
    """A query under way: whom it was asked, what came back, what `compare` made of it."""

    query: Query
    seen: Tensor  # [F]
    votes: Tensor  # [K]
    asked: list[int] = field(default_factory=list)
    came: list[Answer] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    stopped: Stop | None = None

    @property
    def spent_usd(self) -> float:
        return sum(answer.cost_usd for answer in self.came)

    @property
    def answered(self) -> bool:
        return any(answer.error is None for answer in self.came)

    def add(self, expert: int, answer: Answer, compare: Compare) -> None:
        """One more call. A failed one gives no answer."""
        self.asked.append(expert)
        self.came.append(answer)
        done = [i for i, one in enumerate(self.came) if one.error is None]
        answers = compare(self.query, [self.came[i].text for i in done])
        self.answers = [None] * len(self.came)
        for i, text in zip(done, answers, strict=True):
            self.answers[i] = text

    def groups(self) -> list[int]:
        """For each call the first one that gave the same answer; -1 where it gave none."""
        return [-1 if answer is None else self.answers.index(answer) for answer in self.answers]


class Session:
    """A stream of queries that a router answers with real experts, from one budget.

    Attributes:
        left_usd: dollars left.
        left: queries left.
    """

    def __init__(
        self,
        router: Any,
        experts: Sequence[Expert],
        mean_cost_usd: Sequence[float],
        compare: Compare,
        left_usd: float,
        left: int,
    ):
        """Args: a router (`agents.routers.Router`), its experts in order, what each costs on average, and the above."""
        self.router, self.experts, self.mean_cost_usd, self.compare = router, experts, mean_cost_usd, compare
        self.left_usd, self.left = left_usd, left
        self.max_calls: int = getattr(router, "max_calls", 1)

    def answer(self, queries: Sequence[Query], seen: Tensor, reliability: Tensor) -> list[Reply]:
        """Answers queries side by side: each round makes at most one call about each, those to one expert together.

        The router sees a query as if it came first of those not answered yet, and nothing were spent on the others: a
        query alone is played exactly as in an episode. Whatever it sees, no call is made whose worst case exceeds what
        is left; where other calls of the round may still release enough, it waits for the next, and where nobody has
        answered yet, the most reliable expert that can be paid for is asked instead.

        Args:
            queries: B.
            seen: [B, F], what the router sees of them.
            reliability: [B, K] in [0, 1], the estimated chances that experts are right; these weigh their votes.
        """
        cases = [QueryState(*one) for one in zip(queries, seen, vote_weight(reliability), strict=True)]
        while under_way := [case for case in cases if case.stopped is None]:
            self._round(under_way)
            self.left -= sum(case.stopped is not None for case in under_way)
        return [self._reply(case) for case in cases]

    def _round(self, cases: Sequence[QueryState]) -> None:
        """At most one more call about each of the queries under way."""
        for case in cases:
            if len(case.asked) < len(self.experts) and not self._within_means(case):
                case.stopped = "money"
        cases = [case for case in cases if case.stopped is None]
        asks: dict[int, list[QueryState]] = {}
        reserved_usd = 0.0
        for case, choice in zip(cases, self._choices(cases), strict=True):
            expert = self._payable(case, choice)
            if expert == len(self.experts):
                case.stopped = "policy"
            elif expert in case.asked:
                case.add(expert, Answer("", 0, 0, 0.0, 0.0, ASKED_BEFORE), self.compare)
            elif (worst_usd := self._worst_usd(expert, case.query)) > self.left_usd:
                case.add(expert, not_asked(), self.compare)
            elif reserved_usd + worst_usd <= self.left_usd:
                reserved_usd += worst_usd
                asks.setdefault(expert, []).append(case)
        for expert, answers in self._ask(asks).items():
            self.left_usd = max(0.0, self.left_usd - sum(answer.cost_usd for answer in answers))
            for case, answer in zip(asks[expert], answers, strict=True):
                case.add(expert, answer, self.compare)
        for case in cases:
            if case.stopped is None and len(case.came) == self.max_calls:
                case.stopped = "money" if case.came[-1].error == NOT_ASKED else "max calls"

    def _choices(self, cases: Sequence[QueryState]) -> list[int]:
        """Whom the router asks about each query; K delivers."""
        if not cases:
            return []
        seen = torch.stack([case.seen for case in cases])
        spent_usd = [case.spent_usd for case in cases]
        left_usd = torch.tensor([self.left_usd + sum(spent_usd) - own for own in spent_usd], dtype=torch.float64)
        left = torch.full((len(cases),), self.left)
        calls = [self._calls(cases)] if self.max_calls > 1 else []
        return self.router.choose(seen, left_usd.to(seen.device), left.to(seen.device), *calls).tolist()

    def _calls(self, cases: Sequence[QueryState]) -> Calls:
        """What the router is told of the calls made."""
        asked, answered, polled = votes_of(cases, self.max_calls - 1)
        return calls_from_features(
            poll_features(len(self.experts), asked, answered, polled, self.max_calls), self.max_calls
        )

    def _within_means(self, case: QueryState) -> list[int]:
        """The experts not asked yet that what is left pays for."""
        others = (k for k in range(len(self.experts)) if k not in case.asked)
        return [k for k in others if self._worst_usd(k, case.query) <= self.left_usd]

    def _payable(self, case: QueryState, choice: int) -> int:
        """The choice, or where nobody has answered yet and it cannot be paid for: the most reliable that can be."""
        others = self._within_means(case)
        if choice == len(self.experts) or choice in others or case.answered or not others:
            return choice
        return max(others, key=lambda k: (float(case.votes[k]), self.mean_cost_usd[k]))

    def _worst_usd(self, expert: int, query: Query) -> float:
        """The most that a call can cost, as far as prices and token limits are known; else what it costs on average."""
        spec = getattr(self.experts[expert], "spec", None)
        return self.mean_cost_usd[expert] if spec is None else spec.worst_usd(query)

    def _ask(self, asks: dict[int, list[QueryState]]) -> dict[int, list[Answer]]:
        """Asks each expert its queries together: servers side by side, local models one after the other."""
        queries = {k: [case.query for case in cases] for k, cases in asks.items()}
        local = [k for k in asks if isinstance(getattr(self.experts[k], "spec", None), LocalSpec)]
        with ThreadPoolExecutor(len(asks) or 1) as pool:
            served = {k: pool.submit(_answers, self.experts[k], queries[k]) for k in asks if k not in local}
            answers = {k: _answers(self.experts[k], queries[k]) for k in local}
        return answers | {k: future.result() for k, future in served.items()}

    def _reply(self, case: QueryState) -> Reply:
        assert case.stopped is not None
        _, _, polled = votes_of([case], self.max_calls)
        leader = int(polled.leader)
        delivered = case.asked.index(leader) if leader >= 0 else None
        agrees = polled.agrees[0].tolist()[: len(case.asked)]
        trail = zip(case.asked, case.came, case.answers, agrees, strict=True)
        return Reply(
            query=case.query,
            text=None if delivered is None else case.came[delivered].text,
            answer=None if delivered is None else case.answers[delivered],
            expert=None if delivered is None else self.experts[leader].name,
            calls=tuple(_call(self.experts[k].name, *rest) for k, *rest in trail),
            stopped=case.stopped,
        )


def votes_of(cases: Sequence[QueryState], width: int) -> tuple[Tensor, Tensor, Poll]:
    """Whom B queries were asked [B, `width`], which calls were answered, and the poll of these, as in an episode."""
    device = cases[0].votes.device
    asked, groups = (
        _padded(rows, width).to(device) for rows in ([case.asked for case in cases], [case.groups() for case in cases])
    )
    answered = _padded([[one.error is None for one in case.came] for case in cases], width).to(device) > 0
    votes = torch.stack([case.votes for case in cases]).gather(1, asked.clamp(min=0))
    return asked, answered, poll(asked, answered, groups, votes)


def _call(expert: str, came: Answer, answer: str | None, agrees: bool) -> Call:
    return Call(
        expert=expert,
        output=came.text,
        answer=answer,
        agrees=agrees,
        cost_usd=came.cost_usd,
        latency_s=came.latency_s,
        prompt_tokens=came.prompt_tokens,
        completion_tokens=came.completion_tokens,
        error=came.error,
    )


def _answers(expert: Expert, queries: Sequence[Query]) -> list[Answer]:
    """The expert's answers; one that raises has failed, and others' answers, which are paid for, are not lost by it."""
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
