"""Estimates the value of one more call: what it is expected to add to the score, later calls included.

The first two calls of a continuation are worked out exactly in the model of `answer_model` (two-step lookahead over the
most promising experts); what lies beyond them is a small network fitted on simulated episodes of training queries, by
fitted Q iteration (Ernst, Geurts and Wehenkel, Tree-based batch mode reinforcement learning, 2005).

Shapes: B queries, K experts, L candidates, M = `max_calls`, C calls at most so far, Z nodes of the ease, H hypotheses,
F features of the continuation network. Prices are in score: what a call's money would earn elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from agents.estimators.base import MAX_CONSIDERED, Estimates
from agents.policies.answer_model import AnswerModel, Calls, Posterior, fit_answer_model, group_answers, told
from leeroo_env.table import ExpertTable

N_CANDIDATES = 5  # the experts that would add most by themselves; 4 to 8 do alike on train and val
N_SECOND = 3  # of the candidates, as the second of two calls
FORBIDDEN = -1e4
LEAST_GAIN = 1e-5  # of a later call, so that none is made for nothing where money has no other use
HIDDEN = 32
PRICES = (5e-3, 40.0)  # of the most expensive expert's mean cost, in score: from nearly free to prohibitive
SWEEPS = 3
QUERIES = 16_000  # a sweep
STEPS = 500
BATCH = 2_048
LEARNING_RATE = 3e-3
EXPLORATION_RATE = 0.15  # share of simulated calls that are uniformly random
NOISE_SCALE = 0.03  # of the Gumbel noise on the value of the other calls
CONTINUATION_WEIGHT = 0.5  # of the fitted continuation: best of 0, 0.5 and 1 by cross-validation on train and val


@dataclass(frozen=True)
class CallEstimates:
    """The value of one more call for B queries.

    Attributes:
        experts: [B, L] int64, the candidates.
        gain: [B, L], what a call to each adds to the expected score, later calls less their prices included;
            `FORBIDDEN` where the expert cannot be called.
        stop_value: [B], the chance that the leading answer is right; 0 where there is none.
        second: [B, L], the part of `gain` that the second call of the lookahead adds.
        features: [B, L, F], the inputs of the continuation network.
    """

    experts: Tensor
    gain: Tensor
    stop_value: Tensor
    second: Tensor
    features: Tensor


@dataclass(frozen=True)
class Candidates:
    """The experts under consideration for the next call; [B, L] each.

    Attributes:
        experts: int64.
        votes: of each one's answer.
        price: of a call, in score.
        budget_share: what part of the money left a call takes.
        chance: that the expert is right, given the calls made.
        gain: what a call adds to the chance that the leading answer is right.
        net: `gain` less `price`; `FORBIDDEN` where the expert cannot be called.
        best: [B, l], the largest of `net`, falling.
        best_place: [B, l] int64, their places.
    """

    experts: Tensor
    votes: Tensor
    price: Tensor
    budget_share: Tensor
    chance: Tensor
    gain: Tensor
    net: Tensor
    best: Tensor
    best_place: Tensor


@dataclass(frozen=True)
class Answers:
    """What K experts answer to n queries; `answers[rows]` are those to some of the queries.

    Attributes:
        ids: [n, K] int64, equal where answers are; -1: none.
        evidence: [n, K], what each call tells of its answer, in log-odds of being right.
    """

    ids: Tensor
    evidence: Tensor

    @classmethod
    def of(cls, ids: Tensor, evidence: Tensor | None = None) -> Answers:
        """From answer ids [n, K] of any integers; without evidence: calls tell nothing."""
        return cls(ids.long(), torch.zeros(ids.shape, device=ids.device) if evidence is None else evidence)

    def __getitem__(self, rows: Tensor | slice) -> Answers:
        return Answers(self.ids[rows], self.evidence[rows])


class CallValue(nn.Module):
    """The value of calls for K experts and at most `max_calls` of them a query."""

    continuation_weight: Tensor
    later_weight: Tensor

    def __init__(self, n_experts: int, max_calls: int):
        super().__init__()
        self.max_calls, self.n_candidates = max_calls, min(N_CANDIDATES, n_experts)
        self.register_buffer("continuation_weight", torch.ones(()))  # 1 while `continuation_net` is fitted
        self.register_buffer("later_weight", torch.ones(()))  # what part of the gain of calls after the first is real
        self.answer_model = AnswerModel(n_experts)
        self.continuation_net = nn.Sequential(
            nn.Linear(10 + max_calls, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)
        )
        nn.init.zeros_(self.continuation_net[-1].weight)  # type: ignore[arg-type]
        nn.init.constant_(self.continuation_net[-1].bias, -4.0)  # type: ignore[arg-type]

    def forward(
        self,
        chance: Tensor,
        price: Tensor,
        calls: Calls,
        allowed: Tensor,
        budget_share: Tensor | None = None,
        among: Tensor | None = None,
    ) -> CallEstimates:
        """The value of a call to each of the most promising experts, and of stopping.

        Args:
            chance: [B, K], estimated, that experts are right.
            price: [B, K], of calls, in score.
            calls: those made.
            allowed: [B, K] bool, the experts that may be called.
            budget_share: [B, K], what part of the money left calls take; the lookahead considers two calls only where
                both are affordable. None: no limit.
            among: [B, l] int64, the experts that are considered; None: all, or of a large pool those that are best by
                chance and price.
        """
        if among is None and chance.shape[1] > MAX_CONSIDERED:
            among = (chance - price).masked_fill(~allowed, FORBIDDEN).topk(MAX_CONSIDERED, dim=1).indices
        chance, votes = told(chance, calls)
        posterior = self.answer_model.posterior(chance, votes, calls, among)
        stop_value = posterior.leader_chance()
        alone, experts, chance = _best_alone(posterior, price, allowed)
        votes, price = votes.gather(1, experts), price.gather(1, experts)
        share = torch.zeros_like(price) if budget_share is None else budget_share.gather(1, experts)
        gain = self.answer_model.leader_chance_after(posterior, experts, votes) - stop_value[:, None]
        net = (gain - price).masked_fill(alone <= FORBIDDEN, FORBIDDEN)
        best = net.topk(min(N_SECOND, net.shape[1]), dim=1)
        candidates = Candidates(experts, votes, price, share, chance, gain, net, best.values, best.indices)
        second, agrees = self._second_call(posterior, candidates)
        features = self._features(candidates, stop_value, second, agrees, calls.made)
        continues = (calls.made < self.max_calls - 1)[:, None]
        continuation = self.continuation_weight * softplus(self.continuation_net(features).squeeze(-1))
        gain = torch.where((calls.made > 0)[:, None], self.later_weight * gain - LEAST_GAIN, gain)
        later = self.later_weight * (second + continuation)
        gain = (gain + later * continues).masked_fill(alone <= FORBIDDEN, FORBIDDEN)
        return CallEstimates(experts, gain, stop_value, second, features)

    def _second_call(self, posterior: Posterior, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """What the best second call after each candidate's is expected to add, less its price, given whether the first
        agrees with the leading answer; and the chance that it does; both [B, L]."""
        experts, votes, second = candidates.experts, candidates.votes, candidates.best_place
        n = experts.shape[1]
        outcomes, stop = self.answer_model.outcomes(posterior, experts, experts.gather(1, second))
        chance, second_right = outcomes[:, :, 0], outcomes[:, :, 1:]  # [B, 3, L] and [B, 3, c, L]
        leader_votes, leader = (part[:, None] for part in posterior.leader)
        # joint chance of each outcome and that the answer leading after it is right: the same one, or the first call's
        stop[:, 1] = torch.where(votes > leader_votes, candidates.chance - stop[:, 0], stop[:, 1])
        after = self.answer_model.support_after(posterior, experts, votes)
        agreed = after.gather(2, leader[..., None].expand(-1, n, 1)).squeeze(2)
        votes_after = torch.stack([agreed, votes.maximum(leader_votes), leader_votes.expand(-1, n)], dim=1)
        overrules = votes.gather(1, second)[:, None, :, None] > votes_after[:, :, None]
        value = torch.where(overrules, second_right, stop[:, :, None])
        value = value - chance[:, :, None] * candidates.price.gather(1, second)[:, None, :, None]
        share = candidates.budget_share
        possible = second[..., None] != torch.arange(n, device=experts.device)
        possible &= (candidates.best > FORBIDDEN)[..., None]
        possible &= share.gather(1, second)[..., None] + share[:, None] <= 1
        value = value.masked_fill(~possible[:, None], -torch.inf).amax(dim=2)
        return (value - stop).clamp(min=0).sum(dim=1), chance[:, 0]

    def _features(
        self, candidates: Candidates, stop_value: Tensor, second: Tensor, agrees: Tensor, made: Tensor
    ) -> Tensor:
        """[B, L, F]; without the experts' identities, against overfitting."""
        gain, price = candidates.gain, candidates.price
        log_price = price.clamp(min=1e-5).log() / 4
        best, place = candidates.best[:, :2].clamp(-1, 1), candidates.best_place[:, :1]
        shared = [stop_value[:, None], best[:, :1], best[:, -1:], log_price.gather(1, place), gain.gather(1, place)]
        own = [gain, log_price, price.clamp(max=2), candidates.chance.clamp(-1, 1), agrees, second]
        n_calls = made.clamp(max=self.max_calls - 1) == torch.arange(1, self.max_calls, device=made.device)[:, None]
        each = torch.stack([*own, *(x.expand_as(gain) for x in shared)])
        return torch.cat([each, n_calls[..., None].expand(-1, -1, gain.shape[1])]).permute(1, 2, 0)


def _best_alone(posterior: Posterior, price: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates' chances of being right less their prices, [B, L], `FORBIDDEN` where they are not allowed; which
    experts they are, [B, L]; and their chances; from prices and permissions [B, K]."""
    among = posterior.among
    if among is not None:
        price, allowed = price.gather(1, among), allowed.gather(1, among)
    chance = posterior.expert_chance()
    alone = (chance - price).masked_fill(~allowed, FORBIDDEN)
    alone, place = alone.topk(min(N_CANDIDATES, alone.shape[1]), dim=1)
    return alone, place if among is None else among.gather(1, place), chance.gather(1, place)


def fit_call_value(
    table: ExpertTable,
    rows: Tensor,
    estimates: Estimates,
    max_calls: int,
    seed: int = 0,
    evidence: Tensor | None = None,
    answer_model: AnswerModel | None = None,
) -> CallValue:
    """Fits the continuation network, and the answer model unless it is given, to training queries.

    Each sweep simulates calls at prices from low to high, mostly those of highest value by the last sweep, and fits the
    network to what the lookahead leaves out: the value of the state that a call led to, less its lookahead.

    Args:
        table: with answers.
        rows: [n], the training queries.
        estimates: of these, out of fold.
        max_calls: M.
        seed: of draws and initial weights.
        evidence: [n, K], what calls tell of their answers, from models that did not see these; None: nothing.
        answer_model: fitted to these queries; None: it is fitted here.
    """
    device = table.device
    generator = torch.Generator(device).manual_seed(seed)
    chance, cost_usd = estimates.score, estimates.cost_usd
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        call_value = CallValue(chance.shape[1], max_calls).to(device)
    call_value.answer_model = answer_model or fit_answer_model(table, rows, chance, seed, evidence)
    call_value.requires_grad_(False)
    cost = cost_usd / table.mean_cost_usd().max().clamp(min=1e-30)
    answers = Answers.of(table.answer_ids[rows], evidence)
    fit_continuation(call_value, chance, cost, answers, generator)
    return call_value


def fit_continuation(
    call_value: CallValue,
    chance: Tensor,
    cost: Tensor,
    answers: Answers,
    generator: torch.Generator,
) -> None:
    """Fits the continuation network to the answers of n queries, as `fit_call_value` describes.

    Args:
        call_value: with its answer model fitted.
        chance: [n, K], estimated, that experts are right.
        cost: [n, K], estimated, in units of the highest mean cost.
        answers: to these queries.
        generator: of draws.
    """
    if call_value.max_calls == 1:
        return
    device = chance.device
    call_value.continuation_weight.fill_(1.0)
    for _ in range(SWEEPS):
        transitions = []
        for _ in range(-(-QUERIES // BATCH)):
            batch = torch.randint(len(chance), (BATCH,), generator=generator, device=device)
            transitions += _explore(call_value, chance[batch], cost[batch], answers[batch], generator)
        features, second, value = (torch.cat(part) for part in zip(*transitions, strict=True))
        _fit_continuation_net(call_value.continuation_net, features, second, value, generator)
    call_value.continuation_weight.fill_(CONTINUATION_WEIGHT)


def _explore(
    call_value: CallValue, chance: Tensor, cost: Tensor, answers: Answers, generator: torch.Generator
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Simulates M calls for each of B queries.

    Returns:
        For each call but the last: its features [B, F], the second call's part of its lookahead [B], and the value of
        the state that it led to over stopping there [B].
    """
    b, device = len(chance), chance.device
    low, high = PRICES
    price = low * (high / low) ** torch.rand(b, 1, generator=generator, device=device) * cost
    asked = torch.full((b, call_value.max_calls), -1, device=device)
    transitions, previous = [], None
    for call in range(call_value.max_calls):
        calls = calls_from_table(asked[:, :-1], answers)
        estimates = call_value(chance, price, calls, not_asked(asked, chance.shape[1]))
        net = estimates.gain - price.gather(1, estimates.experts)
        if previous is not None:
            transitions.append((*previous, net.amax(dim=1).clamp(min=0)))
        draw = torch.empty(2, b, net.shape[1], device=device).exponential_(generator=generator)
        noisy = net / NOISE_SCALE - draw[0].log()
        explores = torch.rand(b, 1, generator=generator, device=device) < EXPLORATION_RATE
        uniform = draw[1].masked_fill(net < FORBIDDEN / 2, -1.0)
        place = torch.where(explores, uniform, noisy).argmax(dim=1, keepdim=True)
        index = place[..., None].expand(-1, -1, estimates.features.shape[2])
        previous = estimates.features.gather(1, index).squeeze(1), estimates.second.gather(1, place).squeeze(1)
        asked[:, call] = estimates.experts.gather(1, place).squeeze(1)
    return transitions


def _fit_continuation_net(
    net: nn.Module, features: Tensor, second: Tensor, value: Tensor, generator: torch.Generator
) -> None:
    """Least squares of `value` [n] less `second` [n] on `features` [n, F]."""
    net.requires_grad_(True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(value), (BATCH,), generator=generator, device=value.device)
        error = second[batch] + softplus(net(features[batch]).squeeze(1)) - value[batch]
        optimizer.zero_grad()
        error.square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    net.requires_grad_(False)


def calls_from_table(asked: Tensor, answers: Answers) -> Calls:
    """The calls to `asked` [B, C], -1 where there is none, all answered with the `answers` to these B queries."""
    asked = asked if asked.shape[1] else asked.new_full((len(asked), 1), -1)
    made, experts = asked >= 0, asked.clamp(min=0)
    given = answers.ids.gather(1, experts).masked_fill(~made, -1)
    evidence = answers.evidence.gather(1, experts) * made
    return Calls(asked, group_answers(given), made.sum(dim=1), evidence=evidence)


def not_asked(asked: Tensor, k: int) -> Tensor:
    """[B, K] bool, the experts that are not among `asked` [B, C]."""
    closed = torch.zeros(len(asked), k + 1, dtype=torch.bool, device=asked.device)
    return ~closed.scatter_(1, asked.where(asked >= 0, k), True)[:, :k]
