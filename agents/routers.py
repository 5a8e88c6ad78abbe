"""Routers without reinforcement learning, for the agent to beat.

All choose as `Orchestrator.choose` does: from embeddings [B, D], dollars left [B] and queries left [B], arrays in, [B]
expert indices out. They know what the agent may know: scores and costs of the training split.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from agents.predictor import Predictor, split_estimates
from leeroo_env.table import ExpertTable

N_PRICES = 400


class Router(Protocol):
    """Anything that chooses experts."""

    def choose(self, embeddings: np.ndarray, remaining_usd: np.ndarray, remaining_queries: np.ndarray) -> np.ndarray:
        """[B, D], [B] dollars, [B] queries left with this one -> [B] int64 expert indices."""
        ...


def keep_reserve(
    actions: np.ndarray, remaining_usd: np.ndarray, remaining_queries: np.ndarray, mean_cost_usd: np.ndarray
) -> np.ndarray:
    """The cheapest expert in place of every choice [B] after which the rest could not even be asked of the cheapest."""
    cheapest = int(mean_cost_usd.argmin())
    reserve = (remaining_queries - 1) * mean_cost_usd[cheapest]
    return np.where(remaining_usd - mean_cost_usd[actions] < reserve, cheapest, actions)


class Cheapest:
    """Always the expert with the lowest mean cost."""

    def __init__(self, table: ExpertTable):
        self.expert = int(table.mean_cost_usd().argmin())

    def choose(self, embeddings: np.ndarray, remaining_usd: np.ndarray, remaining_queries: np.ndarray) -> np.ndarray:
        return np.full(len(embeddings), self.expert)


class Random:
    """Any expert whose mean cost fits what is left, with equal chance."""

    def __init__(self, table: ExpertTable, seed: int = 0):
        self.mean_cost_usd = table.mean_cost_usd().cpu().numpy()
        self.rng = np.random.default_rng(seed)

    def choose(self, embeddings: np.ndarray, remaining_usd: np.ndarray, remaining_queries: np.ndarray) -> np.ndarray:
        fits = self.mean_cost_usd <= remaining_usd[:, None]
        fits[:, self.mean_cost_usd.argmin()] = True
        return np.where(fits, self.rng.random(fits.shape), -1).argmax(axis=1)


class BestSingle:
    """The expert with the best mean score of those that fit what is left per query: one at a time, re-chosen always."""

    def __init__(self, table: ExpertTable):
        self.mean_cost_usd = table.mean_cost_usd().cpu().numpy()
        self.mean_score = table.mean_score().cpu().numpy()

    def choose(self, embeddings: np.ndarray, remaining_usd: np.ndarray, remaining_queries: np.ndarray) -> np.ndarray:
        fits = self.mean_cost_usd <= (remaining_usd / remaining_queries)[:, None]
        fits[:, self.mean_cost_usd.argmin()] = True
        best = np.where(fits, self.mean_score, -1).argmax(axis=1)
        return keep_reserve(best, remaining_usd, remaining_queries, self.mean_cost_usd)


class FixedMixture:
    """The best that can be done without looking at the query: a lottery between two experts.

    These are neighbours on the upper convex hull of mean score over mean cost, mixed so that the expected cost is what
    is left per query. The odds follow what is left, and the reserve is kept.
    """

    def __init__(self, table: ExpertTable, seed: int = 0):
        self.mean_cost_usd = table.mean_cost_usd().cpu().numpy()
        self.hull = upper_hull(self.mean_cost_usd, table.mean_score().cpu().numpy())
        self.rng = np.random.default_rng(seed)

    def choose(self, embeddings: np.ndarray, remaining_usd: np.ndarray, remaining_queries: np.ndarray) -> np.ndarray:
        cost = self.mean_cost_usd[self.hull]
        weight = np.interp(remaining_usd / remaining_queries, cost, np.arange(len(cost)))
        place = (np.floor(weight) + (self.rng.random(len(weight)) < weight % 1)).astype(np.int64)
        return keep_reserve(self.hull[place], remaining_usd, remaining_queries, self.mean_cost_usd)


class PacedPrice:
    """Estimated score minus a price on estimated cost, the price re-solved at every step.

    It is the price at which the training queries, by their left-out estimates, would cost on average what is left per
    remaining query. The reserve is kept.
    """

    def __init__(self, table: ExpertTable, predictor: Predictor):
        self.predictor = predictor
        self.mean_cost_usd = table.mean_cost_usd().cpu().numpy()
        score, cost = split_estimates(predictor.out_of_fold)
        low, high = float(self.mean_cost_usd[self.mean_cost_usd > 0].min(initial=1.0)), self.mean_cost_usd.max() or 1.0
        self.prices = np.concatenate([[0.0], np.geomspace(1e-4 / high, 1e2 / low, N_PRICES)])
        spent = [
            table.costs_usd[predictor.rows, (score - price * cost).argmax(dim=1)].mean().item() for price in self.prices
        ]
        self.spent_usd = np.minimum.accumulate(spent)  # a higher price never buys more

    def price(self, usd_per_query: np.ndarray) -> np.ndarray:
        """The price, score a dollar, at which queries cost `usd_per_query` [B] on average; [B]."""
        return np.interp(usd_per_query, self.spent_usd[::-1], self.prices[::-1])

    def choose(self, embeddings: np.ndarray, remaining_usd: np.ndarray, remaining_queries: np.ndarray) -> np.ndarray:
        device = self.predictor.centres.device
        score, cost = (e.cpu().numpy() for e in self.predictor.predict(torch.from_numpy(embeddings).to(device)))
        price = self.price(remaining_usd / remaining_queries)
        best = (score - price[:, None] * cost).argmax(axis=1)
        return keep_reserve(best, remaining_usd, remaining_queries, self.mean_cost_usd)


def upper_hull(cost: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Indices of the experts on the upper convex hull of score over cost, by rising cost: the cheapest to the best."""
    hull: list[int] = []
    for i in np.lexsort((-score, cost)):
        if hull and score[i] <= score[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(cost, score, hull[-1], i) >= _slope(cost, score, hull[-2], hull[-1]):
            hull.pop()
        hull.append(int(i))
    return np.array(hull)


def _slope(cost: np.ndarray, score: np.ndarray, i: int, j: int) -> float:
    return (score[j] - score[i]) / max(cost[j] - cost[i], 1e-30)


def other_routers(table: ExpertTable, predictor: Predictor, seed: int = 0) -> dict[str, Router]:
    """The routers that every report shows beside the agent, by name."""
    return {
        "random": Random(table, seed),
        "cheapest": Cheapest(table),
        "best single": BestSingle(table),
        "best mixture": FixedMixture(table, seed),
        "paced kernel ridge": PacedPrice(table, predictor),
    }
