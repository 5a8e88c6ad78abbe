"""Computes one step of a batch of episodes: the next state and the reward.

B episodes, K experts, M: max_calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leeroo_env.dynamics.observation import answer_feature, calls_made, vote_features
from leeroo_env.dynamics.rules import Rules
from leeroo_env.dynamics.state import State, current_rows
from leeroo_env.dynamics.voting import add_vote, leading_share, own_votes, vote_weight
from leeroo_env.tensors import normal_tensors


@dataclass(frozen=True)
class Outcome:
    """The outcome of one step, each [B]: `terminated`, `cut_off` and `delivered` are bool.

    `score` is that of the delivered answer, 0 where none was delivered; `cost_usd` is 0 where no call was made.
    """

    reward: Tensor
    terminated: Tensor
    score: Tensor
    cost_usd: Tensor
    cut_off: Tensor
    delivered: Tensor


@normal_tensors
def step(rules: Rules, state: State, actions: Tensor) -> tuple[State, Outcome]:
    """Calls one expert for the current query of every episode or, with M > 1, stops and delivers.

    A call that costs more than what is left is cut off where the money ends: that is spent, there is no answer, and the
    episode continues. (Nobody knows the cost before a call, but a limit on its output keeps to what is left.)

    Args:
        rules: of the episodes.
        state: before the step.
        actions: [B] int64, the experts to call; K stops.
    """
    if rules.max_calls == 1:
        return _step_one_call(rules, state, actions)
    return _step_several_calls(rules, state, actions)


def _step_one_call(rules: Rules, state: State, actions: Tensor) -> tuple[State, Outcome]:
    """`step` with one call per query: the answer is delivered at once; one that was cut off scores 0."""
    row = current_rows(state)
    place = _places(rules, row, actions)
    score, cost_usd = _scores(rules, place, actions), _costs_usd(rules, place, actions)
    cut_off = cost_usd > state.left_usd
    cost_usd, score = cost_usd.minimum(state.left_usd), score * ~cut_off
    t = state.t + 1
    after = State(
        rows=state.rows,
        t=t,
        budget_usd=state.budget_usd,
        left_usd=state.left_usd - cost_usd,
        score=state.score + score,
        cut_off=state.cut_off + cut_off,
        calls=state.calls.scatter_add(1, actions[:, None], torch.ones_like(state.calls[:, :1])),
        asked=state.asked,
        answers=state.answers,
        support=state.support,
        strongest=state.strongest,
        leader=state.leader,
        call_features=state.call_features,
        steps=t,
    )
    delivered = torch.ones_like(cut_off)
    return after, Outcome(_reward(rules, score, cost_usd), t >= rules.horizon, score, cost_usd, cut_off, delivered)


def _step_several_calls(rules: Rules, state: State, actions: Tensor) -> tuple[State, Outcome]:
    """`step` with M > 1. The Mth call delivers as well; calling an expert again brings no answer, at no cost.

    Episodes end after different numbers of steps; one that has ended does not change and has no more reward.
    """
    k, m = len(rules.table.experts), rules.max_calls
    row, playing, call = current_rows(state), state.t < rules.horizon, calls_made(state.call_features, m)
    asks, expert = playing & (actions < k), actions.clamp(max=k - 1)
    place, calls = _places(rules, row, expert), asks & (state.call_features.gather(1, expert[:, None]).squeeze(1) == 0)
    cost_usd = _costs_usd(rules, place, expert) * calls
    cut_off = cost_usd > state.left_usd
    answered = calls & ~cut_off
    cost_usd = cost_usd.minimum(state.left_usd)
    asked = state.asked.scatter(1, call[:, None], actions.masked_fill(~asks, -1)[:, None])
    answer = _lookup(rules.table.answer_ids, place, expert)
    vote = vote_weight(_lookup(rules.reliability, place, expert))
    before = state.answers, state.support, state.strongest, state.leader
    own = None if rules.models is None else _own_votes(rules, row, asked, expert)
    *votes, group = add_vote(*before, call, answer, vote, answered, own)
    answers, support, strongest, leader = votes
    continues = asks & (call < m - 1)
    ends = ~continues
    delivered = playing & ends
    leading = asked.gather(1, leader.clamp(min=0)[:, None]).squeeze(1)
    leading = leading.clamp(min=0)
    score = _scores(rules, _places(rules, row, leading), leading) * ((leader >= 0) & delivered)
    features = state.call_features.scatter(1, expert[:, None], 1.0)
    told = torch.stack([answer_feature(group, m), _lookup(rules.evidence, place, expert)], dim=1) * answered[:, None]
    features.scatter_add_(1, torch.stack([expert + 2 * k, expert + 3 * k], dim=1), told)
    led = answer_feature(leader, m).masked_fill(leader < 0, 2.0)[:, None]  # 2: no expert's
    features[:, k : 2 * k] = features[:, 2 * k : 3 * k] == led
    features[:, 4 * k :] = vote_features(leading_share(support, leader), (support > 0).sum(dim=1), call + 1, m)
    t, keep, clear = state.t + delivered, continues[:, None], ends[:, None]
    after = State(
        rows=state.rows,
        t=t,
        budget_usd=state.budget_usd,
        left_usd=state.left_usd - cost_usd,
        score=state.score + score,
        cut_off=state.cut_off + cut_off,
        calls=state.calls.scatter_add(1, expert[:, None], asks.int()[:, None]),
        asked=asked.masked_fill(clear, -1),
        answers=answers.masked_fill(clear, -1),
        support=support * keep,
        strongest=strongest * keep,
        leader=leader.masked_fill(ends, -1),
        call_features=features.mul_(keep),
        steps=state.steps + playing,
    )
    return after, Outcome(_reward(rules, score, cost_usd), t >= rules.horizon, score, cost_usd, cut_off, delivered)


def _own_votes(rules: Rules, row: Tensor, asked: Tensor, expert: Tensor) -> Tensor:
    """`own_votes` of the calls `asked` [B, M] for the queries `row` [B]."""
    assert rules.models is not None
    votes = vote_weight(rules.reliability[row[:, None], asked.clamp(min=0)])
    return own_votes(rules.models, asked, votes, expert)


def _places(rules: Rules, rows: Tensor, experts: Tensor) -> Tensor:
    """Where the entries of the `experts` [B] on the queries `rows` [B] are in a flat [N, K]; int64 [B]."""
    return rows * len(rules.table.experts) + experts


def _scores(rules: Rules, places: Tensor, experts: Tensor) -> Tensor:
    """Scores float32 [B] of the `experts` [B] at these `_places` [B]."""
    return _lookup(rules.table.scores, places, experts).float()


def _costs_usd(rules: Rules, places: Tensor, experts: Tensor) -> Tensor:
    """Costs in dollars, float64 [B], of the `experts` [B] at these `_places` [B]."""
    return _lookup(rules.table.costs_usd, places, experts).double()


def _lookup(values: Tensor, places: Tensor, experts: Tensor) -> Tensor:
    """The entries [B] of `values` [N, K] of the `experts` [B] at these `_places` [B].

    Flat, since indexing by pairs takes several times as long; one row for all queries is not copied.
    """
    if values.stride(0) == 0:
        return values[0].index_select(0, experts)
    return values.reshape(-1).index_select(0, places)


def _reward(rules: Rules, score: Tensor, cost_usd: Tensor) -> Tensor:
    return (score - score_per_usd(rules) * cost_usd).float()


def score_per_usd(rules: Rules) -> float:
    """What a dollar costs in the reward."""
    return rules.cost_weight / rules.cost_scale.high_usd
