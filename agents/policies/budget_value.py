"""Planning: what money is worth, by dynamic programming over the queries and dollars that an episode has left.

The plan is made backwards from the last query, over a sample of training queries with their left-out estimates: each
goes to the expert that adds most, its score now against what its cost would buy later. Estimates of cost are off, so a
call stands for several that cost more or less; what would not fit is refused, as in `leeroo_env.dynamics`.

The method is approximate dynamic programming, whose slopes are the bid prices of revenue management (Talluri and van
Ryzin, An analysis of bid-price controls, Management Science, 1998).

n training queries, K experts, T queries planned for, P amounts of money, J costs of a call, C bins of cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agents.evaluation.hull import upper_hull
from leeroo_env.dynamics import action_mask, price_range
from leeroo_env.table import ExpertTable

QUERIES = 64
POINTS = 128
RATIOS = 4
SAMPLE = 512
BINS = 48
SMOOTH_FROM = 8  # queries left: with fewer, one dear call may be all there is money for
LEAST_COST = 0.05  # of an expert's mean cost: no lower estimate is believed


@dataclass(frozen=True)
class BudgetValue:
    """What the rest of an episode is worth.

    Attributes:
        value: [T + 1, P], score to come with t queries left and, at point 0, no money; at the others `low_usd` x
            exp(`spread` x u) dollars for each query, u from -1 to 2 as in `leeroo_env.dynamics.budget_features`.
        cost_ratios: [J, K], what calls cost against their estimates, all equally likely.
        mean_cost_usd: [K].
        low_usd: the cheapest mean cost.
        spread: logarithm of the dearest mean cost over the cheapest.
    """

    value: Tensor
    cost_ratios: Tensor
    mean_cost_usd: Tensor
    low_usd: float
    spread: float

    def value_at(self, queries: Tensor, usd: Tensor) -> Tensor:
        """The score to come with `queries` and `usd` left, both [...]. Beyond T queries, T of them at the same pace
        are planned for, and count for all."""
        last, step = self.value.shape[1] - 2, 3 * self.spread / (self.value.shape[1] - 2)
        points = torch.nn.functional.pad(paces(self.spread, self.value), (1, 0))  # in units of low_usd
        slope = self.value.diff(dim=1) / points.diff()
        height = self.value[:, :-1] - slope * points[:-1]
        pace = usd / (queries.clamp(min=1) * self.low_usd)
        place = ((pace.clamp(min=1e-30).log() + self.spread) / step).floor() + 1
        planned = queries.clamp(max=len(self.value) - 1)
        at = (planned * (last + 1) + place.clamp(0, last)).long()
        height, slope = (part.view(-1).index_select(0, at.reshape(-1)).view(at.shape) for part in (height, slope))
        return (height + slope * pace.clamp(max=points[-1])) * (queries / planned.clamp(min=1))

    def call_terms(self, cost_usd: Tensor, usd: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """How likely calls are answered, and what the money that they cost would be worth later; both [..., K].

        Args:
            cost_usd: [..., K], estimated.
            usd: [..., 1], dollars left.
            queries: [..., 1], queries left, this one included.
        """
        cost_usd = cost_usd.maximum(LEAST_COST * self.mean_cost_usd)
        rest = queries - 1
        now = self.value_at(rest, usd)
        apart = [1] * (max(cost_usd.dim(), usd.dim()) - 1)
        left = usd - cost_usd * self.cost_ratios.view(-1, *apart, cost_usd.shape[-1])  # [J, ..., K]
        fits = left >= 0
        price = torch.where(fits, now - self.value_at(rest, left.clamp(min=0)), 0.0)
        return fits.float().mean(dim=0), price.mean(dim=0)


def paces(spread: float, like: Tensor) -> Tensor:
    """[P - 1], the amounts of money planned for, above none: dollars for each query over the cheapest mean cost."""
    return torch.linspace(-spread, 2 * spread, POINTS - 1, device=like.device, dtype=like.dtype).exp()


def solve_one_call(
    estimates: Tensor, cost_ratios: Tensor, mean_cost_usd: Tensor, price_range_usd: tuple[float, float], seed: int = 0
) -> BudgetValue:
    """Plans for queries like the n of `estimates`.

    Args:
        estimates: [n, 2K], left-out scores and costs_usd of training queries.
        cost_ratios: [J, K], of `cost_ratios`.
        mean_cost_usd: [K].
        price_range_usd: cheapest and dearest of these, above 0, as in `leeroo_env.dynamics.Rules`.
        seed: of the sample of the queries.
    """
    device = estimates.device
    low_usd, high_usd = price_range_usd
    spread = max(math.log(high_usd / low_usd), math.log(2))
    plan = BudgetValue(torch.zeros(QUERIES + 1, POINTS, device=device), cost_ratios, mean_cost_usd, low_usd, spread)
    sample = torch.randperm(len(estimates), generator=torch.Generator().manual_seed(seed))[:SAMPLE].to(device)
    score, cost_usd = estimates[sample].chunk(2, dim=1)
    lowest = 1e-3 * low_usd  # an expert may be free
    first, last = (math.log10(max(float(end), lowest)) for end in cost_usd.aminmax())
    edges = torch.logspace(first, last, BINS + 1, device=device)
    place = torch.bucketize(cost_usd.contiguous(), edges[1:-1])
    binned = (edges[1:] * edges[:-1]).sqrt()[:, None].expand(-1, len(mean_cost_usd))  # [C, K]
    pace = low_usd * torch.nn.functional.pad(paces(spread, plan.value), (1, 0))
    for t in range(1, QUERIES + 1):
        usd = t * pace
        answered, price = plan.call_terms(binned, usd[:, None, None], usd.new_tensor(t))  # [P, C, K]
        price = price.masked_fill(~action_mask(mean_cost_usd, usd)[:, None], torch.inf)
        answered, price = (
            part.permute(2, 1, 0).contiguous() for part in (answered, price)
        )  # whole rows are copied fast
        best = torch.full((len(score), POINTS), -torch.inf, device=device)
        for k, bins in enumerate(place.T.contiguous()):
            gain = score[:, k, None] * answered[k].index_select(0, bins) - price[k].index_select(0, bins)  # [n, P]
            best = torch.maximum(best, gain)
        value = plan.value_at(usd.new_tensor(t - 1), usd) + best.mean(dim=0)
        plan.value[t] = _without_dips(value, usd, concave=t >= SMOOTH_FROM)
    return plan


def solve_call_sequences(
    spent_usd: Tensor, value: Tensor, cost_ratios: Tensor, mean_cost_usd: Tensor, price_range_usd: tuple[float, float]
) -> BudgetValue:
    """Plans for queries that may be asked of several experts, from what ways of asking lead to.

    Of every way it is known what n queries have cost after each call and what the answer is worth then; every query is
    asked in the way that adds most at what is left, and no further than the money goes.

    Args:
        spent_usd: [W, n, M], cost of the first calls of W ways, rising.
        value: [W, n, M], chance that the answer delivered then is right.
        cost_ratios: [J, K], of `cost_ratios`.
        mean_cost_usd: [K].
        price_range_usd: cheapest and dearest of these, above 0.
    """
    low_usd, high_usd = price_range_usd
    spread = max(math.log(high_usd / low_usd), math.log(2))
    device = spent_usd.device
    plan = BudgetValue(torch.zeros(QUERIES + 1, POINTS, device=device), cost_ratios, mean_cost_usd, low_usd, spread)
    pace = low_usd * torch.nn.functional.pad(paces(spread, plan.value), (1, 0))
    spent_usd, value = (torch.nn.functional.pad(x, (1, 0)) for x in (spent_usd, value))
    for t in range(1, QUERIES + 1):
        usd = t * pace
        best = torch.full((POINTS,), -torch.inf, device=device)
        for costs, values in zip(spent_usd, value, strict=True):
            last = torch.searchsorted(costs, usd.expand(len(costs), -1).contiguous(), right=True) - 1  # [n, P]
            left = usd - costs.gather(1, last)
            best = best.maximum((values.gather(1, last) + plan.value_at(usd.new_tensor(t - 1), left)).mean(dim=0))
        plan.value[t] = _without_dips(best, usd, concave=t >= SMOOTH_FROM)
    return plan


def fit_budget_value(table: ExpertTable, rows: Tensor, estimates: Tensor, seed: int = 0) -> BudgetValue:
    """The plan for a table, from left-out estimates [n, 2K] of its training queries `rows` [n]."""
    mean_cost_usd = table.mean_cost_usd()
    low_usd, high_usd = price_range(mean_cost_usd)
    ratios = cost_ratios(estimates.chunk(2, dim=1)[1], table.costs_usd[rows], mean_cost_usd)
    return solve_one_call(estimates, ratios, mean_cost_usd, (low_usd, high_usd), seed)


def cost_ratios(estimated_usd: Tensor, true_usd: Tensor, mean_cost_usd: Tensor) -> Tensor:
    """What calls cost against their estimates [n, K]: the middles of J equal parts of the training queries, [J, K]."""
    levels = (torch.arange(RATIOS, device=true_usd.device) + 0.5) / RATIOS
    believed_usd = estimated_usd.maximum(LEAST_COST * mean_cost_usd)
    return (true_usd / believed_usd.clamp(min=1e-30)).quantile(levels, dim=0)


def _without_dips(value: Tensor, usd: Tensor, concave: bool) -> Tensor:
    """`value` [P] made to rise with `usd` [P]. With many queries left it is concave as well, but for what interpolating
    and sampling leave behind, which would be bought as if it were worth something."""
    if not concave:
        return value.cummax(dim=0).values
    x, y = usd.double().cpu().numpy(), value.double().cpu().numpy()
    hull = upper_hull(x, y)
    return value.new_tensor(np.interp(x, x[hull], y[hull]))
