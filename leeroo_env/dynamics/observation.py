"""Computes what the agent observes of an episode, and which actions are open to it.

B episodes, K experts, M: max_calls, F features of a query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leeroo_env.cost_scale import CostScale
from leeroo_env.dynamics.rules import Rules
from leeroo_env.dynamics.state import State, current_rows
from leeroo_env.dynamics.voting import VoteCount
from leeroo_env.tensors import normal_tensors


@normal_tensors
def observe(rules: Rules, state: State) -> Tensor:
    """Query features, with M > 1 call features, then budget features: [B, F + 2] or [B, F + 4K + 5], float32."""
    features = rules.features.index_select(0, current_rows(state))
    c, (b, f) = state.call_features.shape[1], features.shape
    observations = torch.empty(b, f + c + 2, dtype=torch.float32, device=features.device)
    observations[:, :f] = features  # converts half precision on the way: the widest part is written once
    observations[:, f : f + c] = state.call_features
    observations[:, f + c :] = budget_features(rules.cost_scale, state.left_usd, rules.horizon - state.t)
    return observations


def budget_features(scale: CostScale, left_usd: Tensor, queries_left: Tensor) -> Tensor:
    """What the agent observes of the budget, from the dollars [B] and queries [B] left; [B, 2] float32.

    First the logarithm of the dollars per remaining query, scaled so that the lowest mean cost is 0 and the highest 1,
    and clipped at -1 and 2. Then log2(queries left) / 10, so that 1,024 queries are 1.
    """
    queries = queries_left.clamp(min=1).float()
    pace = torch.log(left_usd / queries / scale.low_usd) / scale.log_range
    return torch.stack([pace.clamp(-1, 2).float(), torch.log2(queries) / 10], dim=1)


def call_features(
    n_experts: int,
    asked: Tensor,
    answered: Tensor,
    votes: VoteCount,
    max_calls: int,
    evidence: Tensor | None = None,
) -> Tensor:
    """What the agent observes of the calls for the current query, [B, 4K + 3] float32.

    For each expert: whether it was called; whether it gave the leading answer; and which answer it gave, as the number
    from 1 of the first call that gave this answer, / M; -1 / M for none, 0 where it was not called or cut off; and
    the evidence of this call, 0 where there is none. Then the leading answer's share of the votes, the number of
    different answers / M, and the number of calls / M.

    Args:
        n_experts: K.
        asked: [B, m] int64, the calls as in `count_votes`, m up to M.
        answered: [B, m] bool.
        votes: the `count_votes` of them.
        max_calls: M.
        evidence: [B, m], of the calls; None: none.
    """
    k, made, expert = n_experts, asked >= 0, asked.clamp(min=0)
    of_calls = torch.cat([made, made & votes.agrees, answer_feature(votes.group, max_calls) * answered], dim=1)
    features = torch.zeros(len(asked), 4 * k + 3, dtype=torch.float32, device=asked.device)
    features.scatter_add_(1, torch.cat([expert, expert + k, expert + 2 * k], dim=1), of_calls)  # no expert twice
    if evidence is not None:
        features.scatter_add_(1, expert + 3 * k, evidence * answered)
    features[:, 4 * k :] = vote_features(votes.share, votes.different, made.sum(dim=1), max_calls)
    return features


def answer_feature(group: Tensor, max_calls: int) -> Tensor:
    """Which answer was given, by the first call `group` [...] that gave it; see `call_features`."""
    return (group + 1).masked_fill(group < 0, -1).float() / max_calls


def vote_features(share: Tensor, different: Tensor, made: Tensor, max_calls: int) -> Tensor:
    """The last three of `call_features`, [B, 3] float32, from [B] each."""
    return (torch.stack([share * max_calls, different, made]).float() / max_calls).T


def calls_made(call_features: Tensor, max_calls: int) -> Tensor:
    """The number of calls, [B] int64, from `call_features` [B, 4K + 3]."""
    return (call_features[:, -1] * max_calls).round().long()


def action_mask(mean_cost_usd: Tensor, left_usd: Tensor) -> Tensor:
    """The experts whose mean cost [K] is at most what is left [B]; [B, K] bool. The cheapest is always allowed."""
    return mean_cost_usd <= left_usd.maximum(mean_cost_usd.amin())[:, None]


@normal_tensors
def state_mask(rules: Rules, state: State) -> Tensor:
    """The actions that make sense, bool: [B, K] as in `action_mask`, with M > 1 [B, K + 1] as in `call_mask`."""
    if rules.max_calls == 1:
        return action_mask(rules.cost_scale.mean_usd, state.left_usd)
    return call_mask(rules.cost_scale.mean_usd, state.left_usd, state.call_features)


def call_mask(mean_cost_usd: Tensor, left_usd: Tensor, call_features: Tensor) -> Tensor:
    """The actions that make sense with M > 1, [B, K + 1] bool, the last of them to stop.

    No expert is called twice for a query, and stopping takes a call first. After the first call the mean cost of every
    expert has to be at most what is left, that of the cheapest too.

    Args:
        mean_cost_usd: [K].
        left_usd: [B], dollars left.
        call_features: [B, 4K + 3].
    """
    begun = call_features[:, -1] > 0
    limit_usd = torch.where(begun, left_usd, left_usd.maximum(mean_cost_usd.amin()))
    allowed = (mean_cost_usd <= limit_usd[:, None]) & (call_features[:, : len(mean_cost_usd)] == 0)
    return torch.cat([allowed, begun[:, None]], dim=1)
