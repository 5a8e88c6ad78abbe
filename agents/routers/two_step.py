"""Two experts by estimated gain: a cheap one, and an expensive one for the queries with the largest estimated gain.

B episodes, N queries in the table, n of them in the training split, K experts, X budgets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.estimators import Estimates
from agents.routers.base import Context, Router, experts_by_cost, paid_range_usd, within_reserve
from leeroo_env.table import ExpertTable

N_BUDGETS = 512


class TwoStep(Router):
    """Two experts at a time: the expensive one for the queries with the highest difference of estimated scores.

    A share of the queries goes to the expensive one, such that the mean cost is the budget per query, or less
    where that does not pay. Of all pairs it takes the one that scores best on the training queries, by their
    out-of-fold estimates. Where the reserve forbids experts, the pairs are those of the others.
    """

    def __init__(self, table: ExpertTable, estimates: Estimates):
        """Args: the table, and estimates of all its rows, those of training rows out of fold."""
        self.features = estimates
        self.mean_cost_usd = table.mean_cost_usd()
        self.budgets_usd = _budget_grid(self.mean_cost_usd)
        order, rows = experts_by_cost(self.mean_cost_usd), table.rows("train")
        tensors = (estimates.score, table.scores, table.costs_usd)
        estimated, score, cost_usd = (tensor[rows][:, order].T.contiguous() for tensor in tensors)
        pairs = [_best_with(j, estimated, score, cost_usd, self.budgets_usd) for j in range(len(order))]
        value, cheap, threshold = (torch.stack(part) for part in zip(*pairs, strict=True))
        expensive = value.cummax(dim=0).indices  # [K, X]: row n - 1 is for the n cheapest experts
        self.cheap, self.expensive = order[cheap.gather(0, expensive)], order[expensive]
        self.threshold = threshold.gather(0, expensive)

    def choose(self, context: Context) -> Tensor:
        last = within_reserve(self.mean_cost_usd, context.remaining_usd, context.remaining_queries).sum(dim=1) - 1
        budget = context.usd_per_query
        place = (torch.searchsorted(self.budgets_usd, budget, right=True) - 1).clamp(min=0)
        cheap, expensive = self.cheap[last, place][:, None], self.expensive[last, place][:, None]
        score, cost_usd = context.estimates.score, context.estimates.cost_usd
        continues = score.gather(1, expensive) - score.gather(1, cheap) > self.threshold[last, place][:, None]
        continues &= cost_usd.gather(1, expensive) <= context.remaining_usd[:, None]  # else it would be cut off
        return torch.where(continues, expensive, cheap).squeeze(1)


def _budget_grid(mean_cost_usd: Tensor) -> Tensor:
    """Dollars a query, from 0 over the lowest to the highest mean cost; [X] float64, rising."""
    low, high = paid_range_usd(mean_cost_usd)
    steps = torch.linspace(0, 1, N_BUDGETS - 1, dtype=torch.float64, device=mean_cost_usd.device)
    return torch.cat([steps.new_zeros(1), low * (1 + 1e-6) * (high / low) ** steps])


def _best_with(
    j: int, estimated: Tensor, score: Tensor, cost_usd: Tensor, budgets_usd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The best cheap partner for the expensive expert j, from [K, n] each by rising mean cost.

    Returns:
        For every budget [X]: the mean score, -inf where no pair costs as little; the partner; the gain above which a
        query goes to the expensive expert.
    """
    n = estimated.shape[1]
    gain, best_first = (estimated[j] - estimated[: j + 1]).sort(dim=1, descending=True, stable=True)
    curves = []  # mean score and cost by the number of queries at the expensive expert, 0 to n; [j + 1, n + 1]
    for values in (score.double(), cost_usd.double()):
        steps = (values[j] - values[: j + 1]).gather(1, best_first)
        start = values[: j + 1].sum(dim=1, keepdim=True)
        curves.append(torch.cat([start, start + steps.cumsum(dim=1)], dim=1) / n)
    affordable = torch.searchsorted(curves[1].cummax(dim=1).values, budgets_usd.repeat(j + 1, 1), right=True) - 1
    best_score, continues = curves[0].cummax(dim=1)
    reached = affordable.clamp(min=0)
    value = best_score.gather(1, reached).masked_fill(affordable < 0, -torch.inf)
    threshold = torch.nn.functional.pad(gain, (0, 1), value=-torch.inf).gather(1, continues.gather(1, reached))
    value, cheap = value.max(dim=0)
    if j == 0:
        value = value.clamp(min=-1.0)  # the cheapest alone is always an option
    return value, cheap, threshold.gather(0, cheap[None]).squeeze(0)
