"""Routers that weigh the estimated score of an answer against its estimated cost at a price.

B episodes, N queries in the table, n of them in the training split, K experts, P prices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agents.estimators import Estimates
from agents.routers.base import Context, Router, experts_by_cost, price_grid, within_reserve
from leeroo_env import dynamics
from leeroo_env.table import ExpertTable

CAUTION = 0.95  # share of the budget per query to spend: calls cut off cost more than unspent money; selected on val
N_PRICES = 256
MAX_ROWS = 4_000
N_CANDIDATES = 40
TUNING_EPISODES = 64
TINY = 1e-30


def best_at_price(estimates: Estimates, price: Tensor, allowed: Tensor, remaining_usd: Tensor) -> Tensor:
    """The expert with the most estimated score minus `price` times estimated cost.

    An answer that is estimated to cost more than what is left would be cut off, and scores 0.

    Args:
        estimates: of B queries.
        price: [B], score a dollar.
        allowed: [B, K] bool, the experts to choose among.
        remaining_usd: [B].

    Returns:
        [B] int64.
    """
    score, cost_usd = estimates.score, estimates.cost_usd
    net = torch.where(cost_usd <= remaining_usd[:, None], score, 0.0) - price[:, None] * cost_usd
    return net.masked_fill(~allowed, -torch.inf).argmax(dim=1)


class PriceTable:
    """The mean cost of the training queries at each price, with only the n cheapest experts, for every n.

    The experts that the reserve allows are always the n cheapest for some n.

    Attributes:
        prices: [P], score a dollar, falling to 0.
        spent_usd: [K, P], dollars a query, not falling; row n - 1 belongs to the n cheapest experts.
    """

    def __init__(self, table: ExpertTable, estimates: Estimates):
        mean_cost_usd = table.mean_cost_usd()
        rows = table.rows("train")
        rows = rows[:: -(-len(rows) // MAX_ROWS)]
        order = experts_by_cost(mean_cost_usd)
        score, cost_usd = (part[rows][:, order].T for part in (estimates.score, estimates.cost_usd))
        prices = price_grid(mean_cost_usd, N_PRICES - 1, first=1e2, last=1e-4)
        self.prices = torch.cat([prices, prices.new_zeros(1)])
        spent = _spent(score, cost_usd, table.costs_usd[rows][:, order].T, self.prices)
        self.spent_usd = spent.double().cummax(dim=1).values  # a lower price never buys less

    def price(self, usd_per_query: Tensor, n_allowed: Tensor | None = None) -> Tensor:
        """The price at which queries cost `usd_per_query` [B] on average.

        Args:
            usd_per_query: [B].
            n_allowed: [B] int64, how many of the cheapest experts may be asked; None: all.

        Returns:
            [B] float32, score a dollar.
        """
        k, p = self.spent_usd.shape
        n_allowed = torch.full_like(usd_per_query, k, dtype=torch.int64) if n_allowed is None else n_allowed
        spent = self.spent_usd[n_allowed - 1]
        pace = usd_per_query.double()[:, None]
        above = torch.searchsorted(spent, pace).clamp(1, p - 1)
        low, high = spent.gather(1, above - 1), spent.gather(1, above)
        weight = ((pace - low) / (high - low).clamp(min=1e-30)).clamp(0, 1).float()
        return torch.lerp(self.prices[above - 1], self.prices[above], weight).squeeze(1)


def _spent(score: Tensor, cost_usd: Tensor, true_cost_usd: Tensor, prices: Tensor) -> Tensor:
    """Mean true cost [K, P] of the best of the first 1 to K experts at each price, from [K, n] each."""
    best = torch.full((len(prices), score.shape[1]), -torch.inf, device=score.device)
    paid = torch.zeros_like(best)
    spent = []
    for k in range(len(score)):
        value = torch.addcmul(score[k], prices[:, None], cost_usd[k], value=-1)
        paid = torch.where(value > best, true_cost_usd[k], paid)
        best = torch.maximum(best, value)
        spent.append(paid.mean(dim=1))
    return torch.stack(spent)


class PacedPrice(Router):
    """Estimated score minus a price on estimated cost, the price re-solved at every step.

    It is the price at which the training queries, by their out-of-fold estimates, would cost on average 95 % of
    the budget per query, with only the experts that leave the reserve untouched.
    """

    def __init__(self, table: ExpertTable, estimates: Estimates):
        """Args: the table, and estimates of all its rows, those of training rows out of fold."""
        self.features = estimates
        self.mean_cost_usd = table.mean_cost_usd()
        self.price_table = PriceTable(table, estimates)

    def choose(self, context: Context) -> Tensor:
        allowed = within_reserve(self.mean_cost_usd, context.remaining_usd, context.remaining_queries)
        price = self.price_table.price(CAUTION * context.usd_per_query, allowed.sum(dim=1))
        return best_at_price(context.estimates, price, allowed, context.remaining_usd)


class FixedPrice(Router):
    """Estimated score minus a price on estimated cost, with one price for the whole episode.

    For every budget it is the price that scores best in episodes on the val split.
    """

    features: Estimates
    rules: dynamics.Rules | None

    def __init__(self, table: ExpertTable, estimates: Estimates, horizon: int):
        """Args: the table, estimates of all its rows, and queries an episode."""
        self.features = estimates
        self.mean_cost_usd = table.mean_cost_usd()
        self.rules = dynamics.make_rules(table, "val", min(horizon, len(table.rows("val"))))
        self.price_table = PriceTable(table, estimates)
        self.tuned: dict[float, float] = {}  # by budget, dollars a query
        self.price = torch.zeros(0, device=table.device)

    def begin(self, budgets_usd_per_query: Tensor) -> None:
        budgets, which = budgets_usd_per_query.unique(return_inverse=True)
        prices = [self._price_of(budget) for budget in budgets.tolist()]
        self.price = torch.tensor(prices, device=which.device)[which]

    def choose(self, context: Context) -> Tensor:
        allowed = within_reserve(self.mean_cost_usd, context.remaining_usd, context.remaining_queries)
        return best_at_price(context.estimates, self.price, allowed, context.remaining_usd)

    def _price_of(self, budget_usd: float) -> float:
        """The price tuned for a budget; without a table to tune it on, as where the router is deployed, that of the
        nearest budget."""
        if self.rules is None:
            return self.tuned[
                min(self.tuned, key=lambda tuned: abs(math.log(max(tuned, TINY) / max(budget_usd, TINY))))
            ]
        if budget_usd not in self.tuned:
            self.tuned[budget_usd] = self._tune(budget_usd)
        return self.tuned[budget_usd]

    def _tune(self, budget_usd: float) -> float:
        """The best price for a budget, dollars a query, among those that spend a quarter to eight times as much."""
        device = self.features.device
        rules = self.rules
        assert rules is not None
        powers = torch.linspace(-2, 3, N_CANDIDATES, dtype=torch.float64, device=device)
        candidates = self.price_table.price(budget_usd * 2**powers).unique().flip(0)  # of equally good ones the highest
        price = candidates.repeat_interleave(TUNING_EPISODES)
        number = torch.arange(TUNING_EPISODES, device=device)
        keys = dynamics.episode_keys(torch.full_like(number, -1), number)
        budgets_usd = torch.full(keys.shape, budget_usd, dtype=torch.float64, device=device)
        state = dynamics.sample_episodes(rules, keys, budgets_usd)
        state = dynamics.select_episodes(state, number.repeat(len(candidates)))
        for _ in range(rules.horizon):
            allowed = within_reserve(self.mean_cost_usd, state.left_usd, rules.horizon - state.t)
            actions = best_at_price(self.features[dynamics.current_rows(state)], price, allowed, state.left_usd)
            state, _ = dynamics.step(rules, state, actions)
        return float(candidates[state.score.view(len(candidates), -1).mean(dim=1).argmax()])
