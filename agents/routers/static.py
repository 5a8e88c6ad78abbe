"""Routers that do not look at the query.

B episodes, K experts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.policies.hull import upper_hull
from agents.routers.base import experts_by_cost, usd_per_query, within_reserve
from leeroo_env.table import ExpertTable


class Cheapest:
    """Always the expert with the lowest mean cost."""

    features = None

    def __init__(self, table: ExpertTable):
        self.expert = table.mean_cost_usd().argmin()

    def choose(self, seen: Tensor, remaining_usd: Tensor, remaining_queries: Tensor) -> Tensor:
        return self.expert.expand(len(seen))


class Random:
    """Any expert whose mean cost leaves the reserve untouched, with equal chance."""

    features = None

    def __init__(self, table: ExpertTable, seed: int = 0):
        self.mean_cost_usd = table.mean_cost_usd()
        self.seed, self.generator = seed, torch.Generator(table.device)
        self.generator.manual_seed(seed)

    def begin(self, usd_per_query: Tensor) -> None:
        """Draws the same lots in every evaluation."""
        self.generator.manual_seed(self.seed)

    def choose(self, seen: Tensor, remaining_usd: Tensor, remaining_queries: Tensor) -> Tensor:
        allowed = within_reserve(self.mean_cost_usd, remaining_usd, remaining_queries)
        lot = torch.rand(allowed.shape, generator=self.generator, device=allowed.device)
        return lot.masked_fill(~allowed, -1).argmax(dim=1)


class BestSingle:
    """The expert with the best mean score of those that fit what is left per query: one at a time, re-chosen always."""

    features = None

    def __init__(self, table: ExpertTable):
        self.mean_cost_usd, self.mean_score = table.mean_cost_usd(), table.mean_score()

    def choose(self, seen: Tensor, remaining_usd: Tensor, remaining_queries: Tensor) -> Tensor:
        pace = usd_per_query(remaining_usd, remaining_queries)
        fits = self.mean_cost_usd <= pace.clamp(min=self.mean_cost_usd.double().min())[:, None]
        return self.mean_score.expand(fits.shape).masked_fill(~fits, -1).argmax(dim=1)


class FixedMixture:
    """The best that can be done without looking at the query: a lottery between two experts.

    These are neighbours on the upper convex hull of mean score over mean cost, mixed so that the expected cost is what
    is left per query. The odds follow what is left. Where the reserve forbids experts, the hull is that of the others.
    """

    features = None

    def __init__(self, table: ExpertTable, seed: int = 0):
        self.mean_cost_usd = table.mean_cost_usd()
        self.seed, self.generator = seed, torch.Generator(table.device)
        self.generator.manual_seed(seed)
        order = experts_by_cost(self.mean_cost_usd).cpu().numpy()
        cost, score = self.mean_cost_usd.cpu().numpy(), table.mean_score().cpu().numpy()
        hulls = [order[:n][upper_hull(cost[order[:n]], score[order[:n]])] for n in range(1, len(order) + 1)]
        padded = np.array([np.pad(hull, (0, len(order) - len(hull)), mode="edge") for hull in hulls])
        self.hulls = torch.from_numpy(padded).to(table.device)  # [K, K]: row n - 1 of the n cheapest

    def begin(self, usd_per_query: Tensor) -> None:
        """Draws the same lots in every evaluation."""
        self.generator.manual_seed(self.seed)

    def choose(self, seen: Tensor, remaining_usd: Tensor, remaining_queries: Tensor) -> Tensor:
        n = within_reserve(self.mean_cost_usd, remaining_usd, remaining_queries).sum(dim=1)
        hull = self.hulls[n - 1]
        cost = self.mean_cost_usd[hull].double()
        pace = usd_per_query(remaining_usd, remaining_queries)[:, None]
        above = (cost <= pace).sum(dim=1, keepdim=True).clamp(max=cost.shape[1] - 1)
        below = (above - 1).clamp(min=0)
        low, high = cost.gather(1, below), cost.gather(1, above)
        lot = torch.rand(pace.shape, generator=self.generator, device=pace.device, dtype=torch.float64)
        place = torch.where(lot * (high - low) < pace - low, above, below)
        return hull.gather(1, place).squeeze(1)
