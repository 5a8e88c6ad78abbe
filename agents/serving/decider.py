"""Decides about queries in progress: which expert to ask next or to deliver, and which answer that is.

B queries, K experts, M: the most answers a query, C = M - 1, F features of a query.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from agents.estimators.evidence import VOTE_WEIGHT, EvidenceModel, updated
from agents.policies.answer_model import Calls, calls_from_features
from agents.routers.base import Context, Router
from agents.serving.answer_match import Compare, compare_safely
from agents.serving.evidence import evidence_of
from agents.serving.reply import Call, Reply, StopReason
from experts.types import CUT_OFF, OUT_OF_MONEY, Answer, Query
from leeroo_env.cost_scale import CostScale
from leeroo_env.dynamics import VoteCount, call_features, count_votes, vote_weight
from leeroo_env.variants import entry_of, shared_models

Preference = tuple[float, ...]  # the larger, the rather


@dataclass
class QueryState:
    """A query in progress and its calls so far: experts asked, what they returned, and the answers in that."""

    query: Query
    features: Tensor  # [F]
    reliability: Tensor  # [K], the estimated probabilities that experts are right
    vote_weights: Tensor  # [K], after the evidence of the calls
    worst_usd: list[float] = field(default_factory=list)  # [K], the most that an attempt of a call to each can cost
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

    def groups(self) -> list[int]:
        """For each call that is counted the place among these of the first with the same answer; -1 for none."""
        answers = [self.answers[i] for i in self.counted]
        return [-1 if answer is None else answers.index(answer) for answer in answers]


@dataclass(frozen=True)
class Decider:
    """What a router's policy makes of queries in progress, whoever asks the experts.

    Attributes:
        router: chooses among K experts, and delivering.
        names: [K], of the experts.
        mean_cost_usd: [K].
        compare: tells which answers are equal.
        cost_scale: the unit of estimated costs in the router's features; None where it has none.
        evidence_model: of what calls tell, if the router observes it.
    """

    router: Router
    names: Sequence[str]
    mean_cost_usd: Sequence[float]
    compare: Compare
    cost_scale: CostScale | None = None
    evidence_model: EvidenceModel | None = None

    @property
    def max_calls(self) -> int:
        return self.router.max_calls

    @functools.cached_property
    def models(self) -> Tensor | None:
        """Which experts are variants of one model, as in `leeroo_env.dynamics.Rules`."""
        return shared_models(self.names)

    @functools.cached_property
    def entries(self) -> list[str]:
        """The names of the experts' models: a variant's is its entry's."""
        return [entry_of(name, self.names) for name in self.names]

    def preferences(
        self, states: Sequence[QueryState], remaining_usd: Sequence[float], remaining_queries: Sequence[int]
    ) -> list[list[Preference]]:
        """How much each expert is preferred, and delivering, for each query, with what is left for it; [B, K + 1].

        First counts what the router thinks of each; then, among equals, its choice, whether the expert costs no more
        than that or than the budget per query, its reliability, and its cost.
        """
        if not states:
            return []
        context = self._context(states, remaining_usd, remaining_queries)
        scores = self.router.preferences(context)
        choices = self.router.choose(context) if scores is None else scores.argmax(dim=1)
        if scores is None:
            scores = torch.nn.functional.one_hot(choices, len(self.names) + 1)
        paces_usd = context.usd_per_query.tolist()
        rows = zip(states, scores.tolist(), choices.tolist(), paces_usd, strict=True)
        return [self._ranking(*row) for row in rows]

    def _ranking(self, state: QueryState, scores: list[float], choice: int, pace_usd: float) -> list[Preference]:
        """`preferences` of one query, from the router's [K] or [K + 1] and its choice."""
        limit_usd = max(pace_usd, self.mean_cost_usd[choice] if choice < len(self.names) else 0.0)
        ranking: list[Preference] = []
        pairs = zip(scores, self.mean_cost_usd, state.vote_weights.tolist(), strict=False)
        for k, (score, cost_usd, weight) in enumerate(pairs):
            rest = (1.0, weight, -cost_usd) if cost_usd <= limit_usd else (0.0, -cost_usd, 0.0)
            ranking.append((score, float(k == choice), *rest))
        return [*ranking, (scores[-1] if len(scores) > len(self.names) else -torch.inf,)]

    def _context(
        self, states: Sequence[QueryState], remaining_usd: Sequence[float], remaining_queries: Sequence[int]
    ) -> Context:
        """What the router chooses by."""
        features = torch.stack([state.features for state in states])
        usd = torch.tensor(remaining_usd, dtype=torch.float64, device=features.device)
        queries = torch.tensor(remaining_queries, device=features.device)
        calls = self._calls(states) if self.max_calls > 1 else None
        return Context(features, usd, queries, calls)

    def _calls(self, states: Sequence[QueryState]) -> Calls:
        """The calls so far, as the router's input; experts that cannot be asked look as if they had been."""
        k, m = len(self.names), self.max_calls
        if any(state.counted for state in states):
            asked, answered, polled = votes_of(states, m - 1, self.models)
            evidence = [[state.evidence[i] for i in state.counted] for state in states]
            told = torch.tensor([[*row, *[0.0] * (m - 1 - len(row))] for row in evidence], device=asked.device)
            features = call_features(k, asked, answered, polled, m, told)
        else:
            features = torch.zeros(len(states), 4 * k + 3, device=states[0].features.device)
        closed = torch.ones(len(states), k)
        for row, state in zip(closed, states, strict=True):
            row[state.candidates] = 0.0
        features[:, :k] = closed
        return calls_from_features(features, m)

    def add(self, state: QueryState, expert: int, answer: Answer) -> None:
        """Adds a call, and compares all answers again. One that failed or was cut off gives no answer."""
        state.asked.append(expert)
        state.results.append(answer)
        state.answers.append(None)
        state.evidence.append(0.0)
        succeeded = state.succeeded
        if not succeeded or succeeded[-1] < len(state.results) - 1:
            return
        texts = [state.results[i].text for i in succeeded]
        for i, text in zip(succeeded, compare_safely(self.compare, state.query, texts), strict=True):
            state.answers[i] = text
        self._weigh(state)

    def _weigh(self, state: QueryState) -> None:
        """Takes the evidence of the last call into account."""
        if self.evidence_model is None or self.cost_scale is None:
            return
        expert, k = state.asked[-1], len(self.names)
        cost_usd = state.features[k : 2 * k] * self.cost_scale.high_usd
        told = state.results[-1], state.answers[-1] is not None
        state.evidence[-1] = evidence_of(self.evidence_model, expert, *told, state.reliability, cost_usd)
        evidence = state.reliability.new_tensor(state.evidence[-1])
        weight = vote_weight(updated(state.reliability[expert], evidence, VOTE_WEIGHT))
        state.vote_weights = state.vote_weights.index_fill(0, torch.tensor([expert], device=weight.device), weight)

    def reply(self, state: QueryState) -> Reply:
        """What is delivered for a query that stopped."""
        assert state.stop_reason is not None
        delivered = delivered_call(state, self.models)
        answer = None if delivered is None else state.answers[delivered]
        agrees = [answer is not None and other == answer for other in state.answers]
        names = [self.names[k] for k in state.asked]
        return Reply(
            query=state.query,
            text=None if delivered is None else state.results[delivered].text,
            answer=answer,
            expert=None if delivered is None else names[delivered],
            calls=tuple(map(_call, names, state.results, state.answers, agrees)),
            stop_reason=state.stop_reason,
        )


def votes_of(states: Sequence[QueryState], width: int, models: Tensor | None) -> tuple[Tensor, Tensor, VoteCount]:
    """Experts asked, [B, `width`], -1 for none; whether they answered, bool; and the vote count, as in an episode, with
    `models` as in `count_votes`."""
    device = states[0].vote_weights.device
    models = models if models is None else models.to(device)
    experts = [[state.asked[i] for i in state.counted] for state in states]
    answered = [[int(i in state.succeeded) for i in state.counted] for state in states]
    groups = [state.groups() for state in states]
    asked, answers, group = (_padded(rows, width).to(device) for rows in (experts, answered, groups))
    votes = torch.stack([state.vote_weights for state in states]).gather(1, asked.clamp(min=0))
    return asked, answers > 0, count_votes(asked, answers > 0, group, votes, models)


def _is_cut_off(answer: Answer) -> bool:
    return answer.finish_reason == OUT_OF_MONEY


def delivered_call(state: QueryState, models: Tensor | None) -> int | None:
    """The call whose answer is delivered: the first with the answer of most support. None where there is none.

    One that was cut off at its expert's own limit is delivered only if no complete one has as much support.
    """
    succeeded = state.succeeded
    if not succeeded:
        return None
    *_, votes = votes_of([state], len(state.counted), models)
    leader = state.asked.index(int(votes.leader))
    weights = {i: float(state.vote_weights[state.asked[i]]) for i in succeeded}

    def support(call: int) -> float:
        answer, largest = state.answers[call], dict[int, float]()
        for i in succeeded:
            if answer is not None and state.answers[i] == answer:
                model = state.asked[i] if models is None else int(models[state.asked[i]])
                largest[model] = max(weights[i], largest.get(model, 0.0))
        return sum(largest.values())

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
