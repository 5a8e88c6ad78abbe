"""Routers that ignore the query: fixed experts and lotteries.

B episodes, K experts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.policies.hull import upper_hull
from agents.routers.base import Context, LotteryRouter, Router, experts_by_cost, within_reserve
from leeroo_env.table import ExpertTable


class Cheapest(Router):
    """Always the expert with the lowest mean cost."""

    def __init__(self, table: ExpertTable):
        self.expert = table.mean_cost_usd().argmin()

    def choose(self, context: Context) -> Tensor:
        return self.expert.expand(len(context))


class Random(LotteryRouter):
    """Any expert whose mean cost leaves the reserve untouched, with equal chance."""

    def __init__(self, table: ExpertTable, seed: int = 0):
        self.mean_cost_usd = table.mean_cost_usd()
        super().__init__(seed, table.device)

    def choose(self, context: Context) -> Tensor:
        allowed = within_reserve(self.mean_cost_usd, context.remaining_usd, context.remaining_queries)
        return self.lots(*allowed.shape).masked_fill(~allowed, -1).argmax(dim=1)


class BestSingle(Router):
    """The expert with the best mean score among those whose mean cost is at most the budget per query."""

    def __init__(self, table: ExpertTable):
        self.mean_cost_usd, self.mean_score = table.mean_cost_usd(), table.mean_score()

    def choose(self, context: Context) -> Tensor:
        cheapest = self.mean_cost_usd.double().min()
        fits = self.mean_cost_usd <= context.usd_per_query.clamp(min=cheapest)[:, None]
        return self.mean_score.expand(fits.shape).masked_fill(~fits, -1).argmax(dim=1)


class FixedMixture(LotteryRouter):
    """The best router that ignores the query: a lottery between two experts.

    These are neighbours on the upper convex hull of mean score over mean cost, mixed so that the expected cost is the
    current budget per query. Where the reserve forbids experts, the hull is that of the others.
    """

    def __init__(self, table: ExpertTable, seed: int = 0):
        self.mean_cost_usd = table.mean_cost_usd()
        super().__init__(seed, table.device)
        order = experts_by_cost(self.mean_cost_usd).cpu().numpy()
        cost, score = self.mean_cost_usd.cpu().numpy(), table.mean_score().cpu().numpy()
        hulls = [order[:n][upper_hull(cost[order[:n]], score[order[:n]])] for n in range(1, len(order) + 1)]
        padded = np.array([np.pad(hull, (0, len(order) - len(hull)), mode="edge") for hull in hulls])
        self.hulls = torch.from_numpy(padded).to(table.device)  # [K, K]: row n - 1 of the n cheapest

    def choose(self, context: Context) -> Tensor:
        n = within_reserve(self.mean_cost_usd, context.remaining_usd, context.remaining_queries).sum(dim=1)
        hull = self.hulls[n - 1]
        place = self.mix(self.mean_cost_usd[hull].double(), context.usd_per_query)
        return hull.gather(1, place[:, None]).squeeze(1)
