"""Computes what the rest of an episode is worth at every number of queries and dollars left: the budget value.

Approximate dynamic programming: backward induction over the queries left and a grid of budgets, the expectation being
over a sample of training queries with their out-of-fold estimates. Each query goes to the expert with the highest
expected score less the opportunity cost of its money. The differences of such a value in money are the bid prices of
revenue management (Talluri and van Ryzin, An analysis of bid-price controls, Management Science, 1998). As estimates of
cost have errors, a call costs one of several multiples of its estimate; one that does not fit into the budget is
cut off and takes all that is left, as in `leeroo_env.dynamics`.

Shapes: n training queries, K experts, T queries left at most, P budgets, J multiples of a cost, C bins of cost, L
experts considered for a query, U pairs of an expert and a bin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from agents.estimators.base import MAX_CONSIDERED, Estimates
from agents.policies.hull import upper_hull
from leeroo_env.cost_scale import CostScale
from leeroo_env.dynamics import action_mask
from leeroo_env.table import ExpertTable

N_QUERIES = 64
N_BUDGETS = 128
N_COST_RATIOS = 4
N_COST_BINS = 48
SAMPLE = 512
CONCAVE_FROM = 8  # queries left: with fewer, money may be worth nothing until it pays for one expensive call
CANDIDATE_PRICES = 8  # at which experts are considered, from where cost outweighs score to where it hardly counts
MIN_COST_RATIO = 0.05  # of an expert's mean cost: lower estimates are raised to it


@dataclass(frozen=True)
class BudgetValue:
    """The value of the rest of an episode.

    Attributes:
        value: [T + 1, P], expected score to come with t queries left and budget 0 at point 0, at the others `low_usd` x
            exp(`log_range` x u) dollars a query, u from -1 to 2 as in `leeroo_env.dynamics.budget_features`.
        cost_ratios: [J, K], equally likely ratios of a call's cost to its estimate.
        cost_scale: the experts' mean costs.
    """

    value: Tensor
    cost_ratios: Tensor
    cost_scale: CostScale

    def value_at(self, queries: Tensor, usd: Tensor) -> Tensor:
        """The expected score to come with `queries` and `usd` left, both [...], by linear interpolation.

        With more than T queries left, it is that of T queries at the same budget per query, in proportion.
        """
        return self._values_at(queries, usd)[0]

    def _values_at(self, queries: Tensor, *amounts_usd: Tensor) -> list[Tensor]:
        """`value_at` of each of the amounts, with as many queries left."""
        log_range = self.cost_scale.log_range
        last, step = self.value.shape[1] - 2, 3 * log_range / (self.value.shape[1] - 2)
        points = pad(relative_budgets(log_range, self.value), (1, 0))
        slope = self.value.diff(dim=1) / points.diff()
        intercept = self.value[:, :-1] - slope * points[:-1]
        unit_usd = queries.clamp(min=1) * self.cost_scale.low_usd
        planned = queries.clamp(max=len(self.value) - 1)
        first, longer = planned * (last + 1), queries / planned.clamp(min=1)

        def at(usd: Tensor) -> Tensor:
            budget = usd / unit_usd  # a query, in units of low_usd
            segment = budget.clamp(min=1e-30).log_().add_(log_range).div_(step).floor_().add_(1).clamp_(0, last)
            index = (first + segment).int()
            start, rise = (
                part.view(-1).index_select(0, index.reshape(-1)).view(index.shape) for part in (intercept, slope)
            )
            return rise.mul_(budget.minimum(points[-1])).add_(start).mul_(longer)

        return [at(usd) for usd in amounts_usd]

    def call_terms(
        self, cost_usd: Tensor, usd: Tensor, queries: Tensor, experts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The chance that calls are affordable, and their opportunity cost in score; both [..., K].

        Args:
            cost_usd: [..., K], estimated.
            usd: [..., 1], dollars left.
            queries: [..., 1], queries left, this one included.
            experts: [..., K], which experts these are; None: all in order.
        """
        mean_usd, ratios = self.cost_scale.mean_usd, self.cost_ratios
        if experts is not None:
            mean_usd, ratios = mean_usd[experts], ratios[:, experts]
        cost_usd = cost_usd.maximum(MIN_COST_RATIO * mean_usd)
        rest = queries - 1
        leading = [1] * (max(cost_usd.dim(), usd.dim()) + 1 - ratios.dim())
        left = usd - cost_usd * ratios.view(-1, *leading, *ratios.shape[1:])  # [J, ..., K]
        affordable = left >= 0
        unspent, afterwards = self._values_at(rest, usd, left.clamp(min=0))
        price = unspent - afterwards
        return affordable.float().mean(dim=0), price.mean(dim=0)

    def considered_terms(
        self, score: Tensor, cost_usd: Tensor, usd: Tensor, queries: Tensor, allowed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """`call_terms` of [B, K], the experts that are allowed and considered, [B, K] bool, and which are considered,
        [B, L] int64; None: all.

        Of a large pool only those are considered that are best at the price of the next dollar; terms of others are 0.

        Args:
            score: [B, K], estimated, as `cost_usd`.
            usd: [B, 1], as `queries`.
            allowed: [B, K] bool.
        """
        if score.shape[1] <= MAX_CONSIDERED:
            return *self.call_terms(cost_usd, usd, queries), allowed, None
        part = 0.05 * usd.clamp(min=1e-30)
        unspent, afterwards = self._values_at(queries - 1, usd, usd - part)
        price = (unspent - afterwards) / part
        net = (score - price * cost_usd).masked_fill(~allowed, -torch.inf)
        among = net.topk(MAX_CONSIDERED, dim=1).indices
        terms = self.call_terms(cost_usd.gather(1, among), usd, queries, among)
        affordable, cost = (torch.zeros_like(score).scatter(1, among, term) for term in terms)
        return affordable, cost, allowed & torch.zeros_like(allowed).scatter(1, among, True), among


def relative_budgets(log_range: float, like: Tensor) -> Tensor:
    """[P - 1], the budgets per query of the grid above 0, in units of the cheapest expert's mean cost."""
    return torch.linspace(-log_range, 2 * log_range, N_BUDGETS - 1, device=like.device, dtype=like.dtype).exp()


def solve_one_call(estimates: Estimates, cost_ratios: Tensor, scale: CostScale, seed: int = 0) -> BudgetValue:
    """The budget value where each query is answered by one call.

    Args:
        estimates: of n training queries, out of fold.
        cost_ratios: [J, K], of `cost_ratios`.
        scale: the experts' mean costs.
        seed: of the sample of the queries.
    """
    device = estimates.device
    budget_value, budgets_usd = _zero_value(cost_ratios, scale)
    sample = torch.randperm(len(estimates), generator=torch.Generator().manual_seed(seed))[:SAMPLE].to(device)
    score, cost_usd = estimates.score[sample], estimates.cost_usd[sample]
    lowest = 1e-3 * scale.low_usd  # an expert may be free
    first, last = (math.log10(max(float(end), lowest)) for end in cost_usd.aminmax())
    edges = torch.logspace(first, last, N_COST_BINS + 1, device=device)
    bins = torch.bucketize(cost_usd.contiguous(), edges[1:-1])  # [n, K]
    experts = _candidates(score, cost_usd, scale)  # [n, L]
    pairs, places = (experts * N_COST_BINS + bins.gather(1, experts)).unique(return_inverse=True)
    expert, places = pairs // N_COST_BINS, places.T.contiguous()  # [U] and [L, n]
    binned_usd = (edges[1:] * edges[:-1]).sqrt()[pairs % N_COST_BINS]
    scores = score.gather(1, experts).T[..., None]  # [L, n, 1]
    for t in range(1, N_QUERIES + 1):
        usd = t * budgets_usd
        affordable, price = budget_value.call_terms(binned_usd, usd[:, None], usd.new_tensor(t), expert)  # [P, U]
        price = price.masked_fill(~action_mask(scale.mean_usd, usd)[:, expert], torch.inf)
        affordable, price = affordable.T.contiguous(), price.T.contiguous()  # whole rows copy faster
        best = torch.full((len(score), N_BUDGETS), -torch.inf, device=device)
        for score_of, place in zip(scores, places, strict=True):
            gain = score_of * affordable.index_select(0, place) - price.index_select(0, place)
            best = torch.maximum(best, gain)  # [n, P]
        value = budget_value.value_at(usd.new_tensor(t - 1), usd) + best.mean(dim=0)
        budget_value.value[t] = _monotone(value, usd, concave=t >= CONCAVE_FROM)
    return budget_value


def _candidates(score: Tensor, cost_usd: Tensor, scale: CostScale) -> Tensor:
    """The experts considered for each of n queries, [n, L]: all, or of a large pool those that are best at some price,
    and the cheapest, which is always allowed."""
    n, k = score.shape
    if k <= MAX_CONSIDERED:
        return torch.arange(k, device=score.device).expand(n, -1)
    prices = torch.logspace(math.log10(0.01 / scale.high_usd), math.log10(3 / scale.low_usd), CANDIDATE_PRICES)
    top = MAX_CONSIDERED // CANDIDATE_PRICES
    best = [(score - price * cost_usd).topk(top, dim=1).indices for price in prices.tolist()]
    return torch.cat([*best, scale.mean_usd.argmin().expand(n, 1)], dim=1)


def _zero_value(cost_ratios: Tensor, scale: CostScale) -> tuple[BudgetValue, Tensor]:
    """A budget value of zeros, to be filled in by backward induction, and the grid's budgets per query [P]."""
    value = torch.zeros(N_QUERIES + 1, N_BUDGETS, device=cost_ratios.device)
    budgets_usd = scale.low_usd * pad(relative_budgets(scale.log_range, value), (1, 0))
    return BudgetValue(value, cost_ratios, scale), budgets_usd


def fit_budget_value(table: ExpertTable, rows: Tensor, estimates: Estimates, seed: int = 0) -> BudgetValue:
    """`solve_one_call` for a table, from out-of-fold estimates of its training queries `rows` [n]."""
    scale = table.cost_scale()
    ratios = cost_ratios(estimates.cost_usd, table.costs_usd[rows], scale.mean_usd)
    return solve_one_call(estimates, ratios, scale, seed)


def cost_ratios(estimated_usd: Tensor, true_usd: Tensor, mean_cost_usd: Tensor) -> Tensor:
    """[J, K], ratios of calls' costs to their estimates, both [n, K]: the medians of J equal parts of the queries."""
    levels = (torch.arange(N_COST_RATIOS, device=true_usd.device) + 0.5) / N_COST_RATIOS
    raised_usd = estimated_usd.maximum(MIN_COST_RATIO * mean_cost_usd)
    return (true_usd / raised_usd.clamp(min=1e-30)).quantile(levels, dim=0)


def _monotone(value: Tensor, usd: Tensor, concave: bool) -> Tensor:
    """`value` [P] made non-decreasing in `usd` [P], and concave too with many queries left.

    What interpolation and sampling add to that shape is noise, which the policy would pay for.
    """
    if not concave:
        return value.cummax(dim=0).values
    x, y = usd.double().cpu().numpy(), value.double().cpu().numpy()
    hull = upper_hull(x, y)
    return value.new_tensor(np.interp(x, x[hull], y[hull]))
