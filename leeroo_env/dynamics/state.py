"""Holds the state of a batch of episodes: how it is initialised, indexed and replaced.

B episodes, H queries per episode, K experts, M: max_calls.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from leeroo_env.dynamics.rng import sample_without_replacement, uniform
from leeroo_env.dynamics.rules import Rules
from leeroo_env.dynamics.voting import no_votes
from leeroo_env.tensors import normal_tensors


@dataclass(frozen=True)
class State:
    """The state of B episodes. Every field's first dimension is B.

    Attributes:
        rows: [B, H] int64, the table's rows of the episode's queries, in order.
        t: [B] int64, queries answered so far.
        budget_usd: [B] float64, the initial budget; single precision would lose small costs beside large budgets.
        left_usd: [B] float64, what is left of it.
        score: [B], sum of the scores so far.
        cut_off: [B] int64, calls so far that cost more than what was left.
        calls: [B, K] int32, calls of each expert so far, those cut off included.
        asked: [B, M] int64, the experts called for the current query, in order; -1 where there is none yet.
        answers: [B, M] int64, their answers; -1 where there is none or the call was cut off.
        support: [B, M] float64, the sum of the votes for the answer that this call was the first to give.
        strongest: [B, M] float64, the largest of these votes.
        leader: [B] int64, the first call that gave the leading answer; -1 before the first answered call.
        call_features: [B, 4K + 3], the `call_features` of these calls.
        steps: [B] int64, steps so far.

    With one call per query `answers`, `support`, `strongest` and `call_features` are [B, 0].
    """

    rows: Tensor
    t: Tensor
    budget_usd: Tensor
    left_usd: Tensor
    score: Tensor
    cut_off: Tensor
    calls: Tensor
    asked: Tensor
    answers: Tensor
    support: Tensor
    strongest: Tensor
    leader: Tensor
    call_features: Tensor
    steps: Tensor


@normal_tensors
def sample_episodes(rules: Rules, keys: Tensor, budget_usd_per_query: Tensor | None = None) -> State:
    """The initial state of B episodes, whose queries and budget depend on their keys alone.

    Args:
        rules: of the episodes.
        keys: [B] int64, any numbers, such as those of `episode_keys`.
        budget_usd_per_query: [B], replaces the sampled budget.
    """
    rows = rules.rows[sample_without_replacement(keys, len(rules.rows), rules.horizon)]
    given = sample_budgets_usd(rules, keys) if budget_usd_per_query is None else budget_usd_per_query
    return new_episodes(rules, rows, given.double() * rules.horizon)


def sample_budgets_usd(rules: Rules, keys: Tensor) -> Tensor:
    """Budgets in dollars per query of the episodes with these `keys` [B], log-uniform; [B] float64."""
    low, high = rules.budget_usd_per_query
    return low * (high / low) ** uniform(keys + 1)


@normal_tensors
def new_episodes(rules: Rules, rows: Tensor, budget_usd: Tensor) -> State:
    """The initial state of B episodes with the queries `rows` [B, H] and `budget_usd` [B] float64."""
    b, k = len(rows), len(rules.table.experts)
    zeros = torch.zeros(b, dtype=torch.int64, device=rows.device)
    several = rules.max_calls > 1
    answers, support, strongest, leader = no_votes(b, rules.max_calls if several else 0, rows.device)
    return State(
        rows=rows,
        t=zeros,
        budget_usd=budget_usd,
        left_usd=budget_usd,
        score=torch.zeros(b, dtype=torch.float32, device=rows.device),
        cut_off=zeros,
        calls=torch.zeros(b, k, dtype=torch.int32, device=rows.device),
        asked=torch.full((b, rules.max_calls), -1, device=rows.device),
        answers=answers,
        support=support,
        strongest=strongest,
        leader=leader,
        call_features=torch.zeros(b, 4 * k + 3 if several else 0, dtype=torch.float32, device=rows.device),
        steps=zeros,
    )


def current_rows(state: State) -> Tensor:
    """The table's row of each episode's current query, [B] int64; the last query's once the episode has ended."""
    return state.rows.gather(1, state.t.clamp(max=state.rows.shape[1] - 1)[:, None]).squeeze(1)


@normal_tensors
def select_episodes(state: State, indices: Tensor) -> State:
    """The episodes at the `indices` [b]."""
    return State(**{field.name: getattr(state, field.name).index_select(0, indices) for field in fields(State)})


@normal_tensors
def replace_episodes(state: State, indices: Tensor, new: State) -> State:
    """`state` with the episodes at the `indices` [b] replaced by the b `new` ones."""
    if len(indices) == len(state.t):
        return new
    names = [field.name for field in fields(State)]
    return replace(state, **{n: getattr(state, n).index_copy(0, indices, getattr(new, n)) for n in names})


@normal_tensors
def replace_ended(state: State, ended: Tensor, new: State) -> State:
    """`state` with the episodes that have `ended` [B] bool replaced by those of `new`, B too; without waiting for a
    device."""

    def chosen(name: str) -> Tensor:
        value, old = getattr(new, name), getattr(state, name)
        return torch.where(ended.view(-1, *[1] * (old.dim() - 1)), value, old)

    return State(**{field.name: chosen(field.name) for field in fields(State)})
