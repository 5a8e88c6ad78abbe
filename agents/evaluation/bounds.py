"""Hindsight bounds: the most that any router could score if it knew every answer in advance.

With all queries, scores and costs known, an episode is a multiple-choice knapsack: every query gets one expert or
none, and the calls together may cost no more than the budget. Its linear relaxation is solved exactly by a greedy
walk: only what is on a query's upper convex hull of score over cost matters, and steps along the hulls are bought by
falling score per dollar until the budget is spent, the last one partly (Sinha and Zoltners, 1979; Kellerer, Pferschy
and Pisinger, Knapsack Problems, 2004, chapter 11). No expert costs and scores 0; a call that is cut off scores no
more, and costs, so no router under the rules of `leeroo_env.dynamics` exceeds this bound in any episode. A router
cannot leave a query unanswered that it could pay for, so part of the gap is out of its reach: most where budgets are
small and many queries hopeless.
The bound holds for routers that ask several experts about a query, too: the answer delivered is that of one expert
among those asked, so in hindsight that call alone scores as much and costs no more.

With estimates in place of the truth the same walk separates two regrets: that of prediction (`hindsight_bound` -
`estimated_bound`) and that of allocation (`estimated_bound` - agent).

N queries in the table, K experts, E episodes, H queries an episode, G budgets, S steps of the longest hull. An option
is an expert, 0 to K - 1, or none, K.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from agents.evaluation.evaluate import Result, clustered_stderr, episodes_for, evaluation_episodes
from leeroo_env.dynamics import Rules
from leeroo_env.errors import InputError


@dataclass(frozen=True)
class Hulls:
    """The options worth buying for each query, by rising cost: its upper convex hull of score over cost.

    Attributes:
        options: [..., S + 1] int64, the options along the hull: none first, the last one repeated.
        efficiency: [..., S] float64, score per dollar of each step from an option to the next, never rising along the
            hull; infinite where a step is free, 0 where there is none left.
    """

    options: Tensor
    efficiency: Tensor

    def of(self, rows: Tensor) -> Hulls:
        """The hulls of the queries `rows` [...] of the table."""
        return Hulls(self.options[rows], self.efficiency[rows])


def hulls(values: Tensor, costs_usd: Tensor) -> Hulls:
    """The hulls of queries with `values` [..., K] and `costs_usd` [..., K], these not negative.

    Each round takes, in all queries at once, the step with the most score per dollar; of equals the longest.
    """
    values, costs_usd = values.double(), costs_usd.double()
    k = values.shape[-1]
    at_value = at_cost = torch.zeros_like(values[..., :1])
    at = torch.full_like(at_value, k, dtype=torch.int64)
    options, efficiency = [at], []
    for _ in range(k):
        gain, extra_usd = values - at_value, costs_usd - at_cost
        slope = torch.where((gain > 0) & (extra_usd >= 0), gain / extra_usd, 0.0)
        steepest = slope.amax(dim=-1, keepdim=True)
        best = torch.where(slope == steepest, values, -torch.inf).argmax(dim=-1, keepdim=True)
        moves = steepest > 0
        at = torch.where(moves, best, at)
        at_value = torch.where(moves, values.gather(-1, best), at_value)
        at_cost = torch.where(moves, costs_usd.gather(-1, best), at_cost)
        options.append(at)
        efficiency.append(steepest)
        if not bool(moves.any()):
            break
    # rounding must not let a step come before the one that it continues
    return Hulls(torch.cat(options, dim=-1), torch.cat(efficiency, dim=-1).cummin(dim=-1).values)


def buy(hull: Hulls, costs_usd: Tensor, budget_usd: Tensor) -> Tensor:
    """Walks along the hulls by falling efficiency, each step at its cost, until the budget is spent.

    The step that would overdraw is taken in part and is the last, so at most one query is shared between two options.
    A step may cost less than nothing, where `costs_usd` is not what the hulls were made from: what it saves is spent.

    Args:
        hull: of the H queries of E episodes, [E, H, S + 1] and [E, H, S].
        costs_usd: [E, H, K], what calls really cost.
        budget_usd: [..., E].

    Returns:
        [..., E, H, K + 1] float64, the share of each query that each option gets. Shares of a query add up to 1.
    """
    extra_usd = with_no_expert(costs_usd).gather(-1, hull.options).diff(dim=-1)
    order = hull.efficiency.flatten(-2).argsort(
        dim=-1, descending=True, stable=True
    )  # stable: a query's in their order
    price = extra_usd.flatten(-2).gather(-1, order)
    spent = price.cumsum(dim=-1)
    over = spent.cummax(dim=-1).values > budget_usd[..., None]  # [..., E, H * S]
    last = over.cumsum(dim=-1) == 1
    part = ((budget_usd[..., None] - (spent - price)) / price).clamp(0, 1)
    taken = torch.where(last, part, (~over).double())
    taken = torch.empty_like(taken).scatter(-1, order.expand(taken.shape), taken)
    taken = taken.unflatten(-1, hull.efficiency.shape[-2:])  # [..., E, H, S]
    reached = torch.nn.functional.pad(taken, (1, 0), value=1.0)
    stays = reached - torch.nn.functional.pad(taken, (0, 1))
    shares = stays.new_zeros(*stays.shape[:-1], costs_usd.shape[-1] + 1)
    return shares.scatter_add(-1, hull.options.expand(stays.shape), stays)


def hindsight(values: Tensor, costs_usd: Tensor, budget_usd: Tensor) -> Tensor:
    """The best that E episodes of H queries allow: `values` and `costs_usd` [E, H, K], `budget_usd` [..., E].

    Returns:
        [..., E, H, K + 1] float64, the share of each query that each option gets.
    """
    return buy(hulls(values, costs_usd), costs_usd, budget_usd)


def with_no_expert(values: Tensor) -> Tensor:
    """Scores or costs of the options [..., K + 1] from those of the experts [..., K]; float64."""
    return torch.nn.functional.pad(values.double(), (0, 1))


def hindsight_bound(rules: Rules, budgets_usd: list[float], episodes: int | None = None, seed: int = 0) -> Result:
    """What `evaluate` would report of a router that knows all answers and may split one query per episode.

    The episodes are those of `evaluate` with the same arguments. In the result `calls` counts only
    answered queries; `cut_off` is the share of queries left unanswered, also where money was left but no score to gain;
    `chosen` is the option with the largest share.
    """
    return estimated_bound(rules, rules.table.scores, rules.table.costs_usd, budgets_usd, episodes, seed)


def estimated_bound(
    rules: Rules,
    estimated_scores: Tensor,
    estimated_costs_usd: Tensor,
    budgets_usd: list[float],
    episodes: int | None = None,
    seed: int = 0,
) -> Result:
    """The plan that would be optimal if the estimates were true, carried out at true costs and true scores.

    What to buy, and in which order, follows from the estimates alone; true costs say only when the budget is spent. It
    is never above `hindsight_bound`, and equal to it where the estimates are the truth. It bounds no router: one that
    learns from what it has spent, or estimates better, may be above.

    Args:
        rules: the rules; their table holds the truth.
        estimated_scores: [N, K], for every row of the table.
        estimated_costs_usd: [N, K]; below 0 counts as 0.
        budgets_usd: [G], dollars per query.
        episodes: E, how many at each budget; as in `evaluate` where not told.
        seed: of the episodes.

    Raises:
        InputError: estimates of another shape than the table's scores, or not finite.
    """
    table = rules.table
    for name, estimates in (("scores", estimated_scores), ("costs", estimated_costs_usd)):
        if estimates.shape != table.scores.shape or not bool(estimates.isfinite().all()):
            raise InputError(f"estimated {name} {list(estimates.shape)}: not finite {list(table.scores.shape)}")
    episodes = episodes or episodes_for(rules)
    plan = hulls(estimated_scores, estimated_costs_usd.clamp(min=0))
    state = evaluation_episodes(rules, budgets_usd, episodes, seed)
    g = len(budgets_usd)
    rows = state.rows.view(g, episodes, -1)[0]  # the same at every budget
    plan, costs_usd = plan.of(rows), table.costs_usd[rows]
    options = with_no_expert(table.scores)[rows], with_no_expert(table.costs_usd)[rows]
    budgets = state.budget_usd.view(g, 1, episodes)  # one at a time: the shares of all may not fit into memory
    parts = [_result(buy(plan, costs_usd, budget), *options, rows) for budget in budgets]
    return Result(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Result)})


def _result(shares: Tensor, scores: Tensor, costs_usd: Tensor, rows: Tensor) -> Result:
    """From shares [G, E, H, K + 1], scores and costs of the options [E, H, K + 1], and the queries' rows [E, H]."""
    per_query = (shares * scores).sum(dim=-1).flatten(1).cpu().numpy()  # [G, E * H]
    paid_usd = (shares * costs_usd).sum(dim=-1).flatten(1)
    asked = rows.flatten().cpu().numpy()
    calls = shares.flatten(1, 2).mean(dim=1).cpu().numpy()
    return Result(
        score=per_query.mean(axis=1),
        cost_usd=paid_usd.mean(dim=1).cpu().numpy(),
        stderr=np.array([clustered_stderr(row, asked) for row in per_query]),
        calls=calls[:, :-1],
        cut_off=calls[:, -1],
        chosen=shares.argmax(dim=-1).flatten(1).cpu().numpy(),
        rows=np.broadcast_to(asked, per_query.shape),
        scored=per_query,
        paid_usd=paid_usd.cpu().numpy(),
    )
