"""Answers queries with real experts under one budget: asks, compares the answers, and asks again or delivers.

B queries, K experts, M: the most answers a query, C = M - 1, F features of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from agents.estimators.evidence import VOTE_WEIGHT, EvidenceModel, updated
from agents.policies.answer_model import Calls, calls_from_features
from agents.routers.base import Context, Router
from agents.serving.answer_match import Compare, compare_safely
from agents.serving.asking import ask_experts, is_limited, most_attempts, worst_attempt_usd
from agents.serving.breaker import NOT_ASKED, CircuitBreaker
from agents.serving.evidence import evidence_of
from agents.serving.reply import Call, Reply, StopReason
from experts.types import CUT_OFF, OUT_OF_MONEY, Answer, Expert, Query
from leeroo_env.dynamics import VoteCount, call_features, count_votes, vote_weight

ROUNDING = 1 + 1e-9
Preference = tuple[float, ...]  # the larger, the rather


@dataclass
class QueryState:
    """A query in progress and its calls so far: experts asked, what they returned, and the answers in that."""

    query: Query
    features: Tensor  # [F]
    reliability: Tensor  # [K]
    vote_weights: Tensor  # [K], after the evidence of the calls
    worst_usd: list[float]  # [K], the most that one attempt of a call to each expert can cost by its price
    asked: list[int] = field(default_factory=list)
    results: list[Answer] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    evidence: list[float] = field(default_factory=list)
    candidates: list[int] = field(default_factory=list)  # the experts that may be asked next
    last_resort: bool = False  # whether these are experts that should be left alone
    resorts: int = 1  # how many such calls may still be made
    stop_reason: StopReason | None = None

    @property
    def billed_usd(self) -> float:
        return sum(answer.billed_usd for answer in self.results)

    @property
    def counted(self) -> list[int]:
        """The calls that are among the M: those that brought an answer, and those cut off when the money ended. The
        router knows of no others."""
        return [i for i, result in enumerate(self.results) if result.error is None or _is_cut_off(result)]

    @property
    def succeeded(self) -> list[int]:
        """The calls that brought an answer."""
        return [i for i, result in enumerate(self.results) if result.error is None and not _is_cut_off(result)]

    def add(self, expert: int, answer: Answer, compare: Compare) -> None:
        """Adds a call, and compares all answers again. One that failed or was cut off gives no answer."""
        self.asked.append(expert)
        self.results.append(answer)
        self.answers.append(None)
        self.evidence.append(0.0)
        succeeded = self.succeeded
        if succeeded and succeeded[-1] == len(self.results) - 1:
            texts = [self.results[i].text for i in succeeded]
            for i, text in zip(succeeded, compare_safely(compare, self.query, texts), strict=True):
                self.answers[i] = text

    def groups(self) -> list[int]:
        """For each call that is counted the place among these of the first with the same answer; -1 for none."""
        answers = [self.answers[i] for i in self.counted]
        return [-1 if answer is None else answers.index(answer) for answer in answers]


class Session:
    """A stream of queries that a router answers with real experts from one budget.

    Attributes:
        remaining_usd: dollars left; a call takes all that it was, or may have been, billed.
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
        breaker: CircuitBreaker,
        evidence_model: EvidenceModel | None = None,
    ):
        """Args: a router (`agents.routers.Router`), its K experts in order, their mean costs, the above, the circuit
        breaker that knows these experts, and the model of what calls tell, if the router observes it."""
        self.evidence_model = evidence_model
        self.router, self.experts, self.mean_cost_usd, self.compare = router, experts, mean_cost_usd, compare
        self.remaining_usd, self.remaining_queries, self.breaker = remaining_usd, remaining_queries, breaker
        self.max_calls: int = router.max_calls
        high_usd: Any = getattr(router, "cost_scale", None)  # the unit of estimated costs in features
        self.high_usd = float(high_usd.high_usd) if high_usd is not None else 0.0
        self.limited = [is_limited(expert) for expert in experts]
        self.attempts = [most_attempts(expert) for expert in experts]
        self.overrun = [1.0] * len(experts)  # the largest factor by which calls to each have cost more than their limit

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
        pairs = list(zip(self.experts, self.mean_cost_usd, strict=True))
        worst_usd = [[worst_attempt_usd(*pair, query) for pair in pairs] for query in queries]
        rows = zip(queries, features, reliability, vote_weight(reliability), worst_usd, strict=True)
        states = [QueryState(*row) for row in rows]
        while open_states := [state for state in states if state.stop_reason is None]:
            self._round(open_states)
            self.remaining_queries -= sum(state.stop_reason is not None for state in open_states)
        return [self._reply(state) for state in states]

    def _round(self, states: Sequence[QueryState]) -> None:
        """Makes at most one more call for each query in progress."""
        for state in states:
            self._find_candidates(state)
        states = [state for state in states if state.stop_reason is None]
        asks: dict[int, list[tuple[QueryState, float]]] = {}
        free_usd = self.remaining_usd
        for state, preferences in zip(states, self._preferences(states), strict=True):
            deliver = [len(self.experts)] if state.counted else []
            choice = max([*state.candidates, *deliver], key=preferences.__getitem__)
            if choice == len(self.experts):
                state.stop_reason = "policy" if state.succeeded else "money"
                continue
            worst_usd = self._worst_usd(state, choice)
            if free_usd < min(worst_usd, self.remaining_usd):
                continue
            if self.breaker.admit(self.experts[choice].name) or state.last_resort:
                limit_usd = min(self.attempts[choice] * worst_usd, free_usd)
                free_usd -= limit_usd
                state.resorts -= state.last_resort
                asks.setdefault(choice, []).append((state, limit_usd))
        self._ask(asks)

    def _find_candidates(self, state: QueryState) -> None:
        """Finds the experts that may be asked next; where there is none, the query stops.

        They were not asked yet, what is left pays for the prompt and a token, and they did not fail lately. Where all
        of them did and there is no answer yet, one is tried all the same.
        """
        others = [k for k in range(len(self.experts)) if k not in state.asked]
        affordable = [k for k in others if self._can_pay(state, k)]
        state.candidates = [k for k in affordable if not self.breaker.is_open(self.experts[k].name)]
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
        for expert, answers in ask_experts(self.experts, queries, limits_usd).items():
            self.breaker.record(self.experts[expert].name, answers)
            self.remaining_usd = max(0.0, self.remaining_usd - sum(answer.billed_usd for answer in answers))
            for (state, _), limit_usd, answer in zip(asks[expert], limits_usd[expert], answers, strict=True):
                if answer.billed_usd > limit_usd * ROUNDING > 0:
                    self.overrun[expert] = max(self.overrun[expert], answer.billed_usd / limit_usd)
                state.add(expert, answer, self.compare)
                self._weigh(state)
                if len(state.counted) == self.max_calls:
                    state.stop_reason = "max calls" if state.succeeded else "money"

    def _weigh(self, state: QueryState) -> None:
        """Takes the evidence of the last call into account, if that brought an answer."""
        last = len(state.results) - 1
        if self.evidence_model is None or last not in state.succeeded:
            return
        expert, k = state.asked[last], len(self.experts)
        cost_usd = state.features[k : 2 * k] * self.high_usd
        told = state.results[last], state.answers[last] is not None
        state.evidence[last] = evidence_of(self.evidence_model, expert, *told, state.reliability, cost_usd)
        evidence = state.reliability.new_tensor(state.evidence[last])
        weight = vote_weight(updated(state.reliability[expert], evidence, VOTE_WEIGHT))
        state.vote_weights = state.vote_weights.index_fill(0, torch.tensor([expert], device=weight.device), weight)

    def _preferences(self, states: Sequence[QueryState]) -> list[list[Preference]]:
        """How much each expert is preferred, and delivering, for each query; [B, K + 1].

        First counts what the router thinks of each; then, among equals, its choice, whether the expert costs no more
        than that or than the budget per query, its reliability, and its cost.
        """
        if not states:
            return []
        context = self._context(states)
        scores = self.router.preferences(context)
        choices = self.router.choose(context) if scores is None else scores.argmax(dim=1)
        if scores is None:
            scores = torch.nn.functional.one_hot(choices, len(self.experts) + 1)
        paces_usd = context.usd_per_query.tolist()
        rows = zip(states, scores.tolist(), choices.tolist(), paces_usd, strict=True)
        return [self._ranking(*row) for row in rows]

    def _ranking(self, state: QueryState, scores: list[float], choice: int, pace_usd: float) -> list[Preference]:
        """`_preferences` of one query, from the router's [K] or [K + 1] and its choice."""
        limit_usd = max(pace_usd, self.mean_cost_usd[choice] if choice < len(self.experts) else 0.0)
        ranking: list[Preference] = []
        pairs = zip(scores, self.mean_cost_usd, state.vote_weights.tolist(), strict=False)
        for k, (score, cost_usd, weight) in enumerate(pairs):
            rest = (1.0, weight, -cost_usd) if cost_usd <= limit_usd else (0.0, -cost_usd, 0.0)
            ranking.append((score, float(k == choice), *rest))
        return [*ranking, (scores[-1] if len(scores) > len(self.experts) else -torch.inf,)]

    def _context(self, states: Sequence[QueryState]) -> Context:
        """What the router chooses by."""
        features = torch.stack([state.features for state in states])
        billed_usd = [state.billed_usd for state in states]
        remaining_usd = torch.tensor(
            [self.remaining_usd + sum(billed_usd) - own for own in billed_usd], dtype=torch.float64
        )
        remaining = torch.full((len(states),), self.remaining_queries)
        calls = self._calls(states) if self.max_calls > 1 else None
        return Context(features, remaining_usd.to(features.device), remaining.to(features.device), calls)

    def _calls(self, states: Sequence[QueryState]) -> Calls:
        """The calls so far, as the router's input; experts that cannot be asked look as if they had been."""
        k, m = len(self.experts), self.max_calls
        asked, answered, polled = votes_of(states, m - 1)
        evidence = [[state.evidence[i] for i in state.counted] for state in states]
        told = torch.tensor([[*row, *[0.0] * (m - 1 - len(row))] for row in evidence], device=asked.device)
        features = call_features(k, asked, answered, polled, m, told)
        closed = torch.ones(len(states), k)
        for row, state in zip(closed, states, strict=True):
            row[state.candidates] = 0.0
        features[:, :k] = closed
        return calls_from_features(features, m)

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

    def _reply(self, state: QueryState) -> Reply:
        assert state.stop_reason is not None
        delivered = _delivered(state)
        answer = None if delivered is None else state.answers[delivered]
        agrees = [answer is not None and other == answer for other in state.answers]
        names = [self.experts[k].name for k in state.asked]
        return Reply(
            query=state.query,
            text=None if delivered is None else state.results[delivered].text,
            answer=answer,
            expert=None if delivered is None else names[delivered],
            calls=tuple(map(_call, names, state.results, state.answers, agrees)),
            stop_reason=state.stop_reason,
        )


def votes_of(states: Sequence[QueryState], width: int) -> tuple[Tensor, Tensor, VoteCount]:
    """Experts asked, [B, `width`], -1 for none; whether they answered, bool; and the vote count, as in an episode."""
    device = states[0].vote_weights.device
    experts = [[state.asked[i] for i in state.counted] for state in states]
    answered = [[int(i in state.succeeded) for i in state.counted] for state in states]
    groups = [state.groups() for state in states]
    asked, answers, group = (_padded(rows, width).to(device) for rows in (experts, answered, groups))
    votes = torch.stack([state.vote_weights for state in states]).gather(1, asked.clamp(min=0))
    return asked, answers > 0, count_votes(asked, answers > 0, group, votes)


def _is_cut_off(answer: Answer) -> bool:
    return answer.finish_reason == OUT_OF_MONEY


def _delivered(state: QueryState) -> int | None:
    """The call whose answer is delivered: the first with the answer of most support. None where there is none.

    One that was cut off at its expert's own limit is delivered only if no complete one has as much support.
    """
    succeeded = state.succeeded
    if not succeeded:
        return None
    *_, votes = votes_of([state], len(state.counted))
    leader = state.asked.index(int(votes.leader))
    weights = {i: float(state.vote_weights[state.asked[i]]) for i in succeeded}

    def support(call: int) -> float:
        answer = state.answers[call]
        return sum(weights[i] for i in succeeded if answer is not None and state.answers[i] == answer)

    def rank(call: int) -> tuple[bool, bool, float]:
        complete = state.results[call].finish_reason != CUT_OFF
        return complete, state.answers[call] == state.answers[leader], weights[call]

    if rank(leader)[0]:
        return leader
    return max((i for i in succeeded if support(i) >= support(leader)), key=rank)


def _call(expert: str, result: Answer, answer: str | None, agrees: bool) -> Call:
    return Call(
        expert=expert,
        output=result.text,
        answer=answer,
        agrees=agrees,
        cost_usd=result.cost_usd,
        billed_usd=result.billed_usd,
        latency_s=result.latency_s,
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        finish_reason=result.finish_reason,
        confidence=result.confidence,
        error=result.error,
    )


def _padded(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """[B, width] int64, -1 where a row is shorter."""
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows], dtype=torch.int64)
