"""The base class of routers, what they are given to choose by, and the reserve and the lotteries that they share.

B episodes or queries at hand, N queries in the table, K experts, F features of a query, X prices or mixed policies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.estimators.base import Estimates
from agents.policies.answer_model import Calls


@dataclass(frozen=True)
class Context:
    """What a router chooses by, for B queries.

    Attributes:
        features: the queries' rows of the router's features, [B, F] or estimates.
        remaining_usd: [B] float64, dollars left.
        remaining_queries: [B] int64, queries left, this one included.
        calls: those made about the queries so far; None for a router of one call.
    """

    features: Tensor | Estimates
    remaining_usd: Tensor
    remaining_queries: Tensor
    calls: Calls | None = None

    def __len__(self) -> int:
        return len(self.remaining_usd)

    @property
    def estimates(self) -> Estimates:
        """The features of a router that observes estimates."""
        assert isinstance(self.features, Estimates)
        return self.features

    @property
    def usd_per_query(self) -> Tensor:
        """What may be spent on each of the remaining queries, [B] float64."""
        return usd_per_query(self.remaining_usd, self.remaining_queries)


class Router(ABC):
    """Chooses the expert for every query of an episode.

    Attributes:
        max_calls: M, the most experts that it asks about one query. Above 1 it is given the calls made so far, and K is
            the stop action, which delivers.
        features: what it observes of each row of the table, [N, F] or estimates; None: the features of the rules.
    """

    max_calls: int = 1
    features: Tensor | Estimates | None = None

    def begin(self, budgets_usd_per_query: Tensor) -> None:  # noqa: B027 - most routers have nothing to prepare
        """Prepares for B episodes with these budgets [B], dollars a query; called before their first queries."""

    @abstractmethod
    def choose(self, context: Context) -> Tensor:
        """The expert to ask about each query, or the stop action; [B] int64."""

    def preferences(self, context: Context) -> Tensor | None:
        """How much it prefers each action, [B, K] or [B, K + 1]: `choose` takes the largest. None: it only chooses."""
        return None


class LotteryRouter(Router):
    """A router that draws lots, the same ones in every evaluation."""

    def __init__(self, seed: int, device: torch.device):
        self.seed, self.generator = seed, torch.Generator(device)
        self.generator.manual_seed(seed)

    def begin(self, budgets_usd_per_query: Tensor) -> None:
        self.generator.manual_seed(self.seed)

    def lots(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform on [0, 1), of this shape."""
        return torch.rand(shape, generator=self.generator, device=self.generator.device, dtype=dtype)

    def mix(self, cost_usd: Tensor, usd_per_query: Tensor) -> Tensor:
        """Draws one of X choices with rising costs [B, X], so that the expected cost is `usd_per_query` [B].

        It is one of the two neighbours of that cost; the first or the last choice where it is out of their range.

        Returns:
            [B] int64, places from 0 to X - 1.
        """
        target = usd_per_query[:, None]
        above = (cost_usd <= target).sum(dim=1, keepdim=True).clamp(max=cost_usd.shape[1] - 1)
        below = (above - 1).clamp(min=0)
        low, high = cost_usd.gather(1, below), cost_usd.gather(1, above)
        takes_above = self.lots(len(target), 1, dtype=torch.float64) * (high - low) < target - low
        return torch.where(takes_above, above, below).squeeze(1)


def within_reserve(mean_cost_usd: Tensor, remaining_usd: Tensor, remaining_queries: Tensor) -> Tensor:
    """The experts whose mean cost [K] leaves the reserve: what the later queries cost at the cheapest; [B, K] bool.

    The cheapest is always allowed. In the order of `experts_by_cost` the allowed experts come first.
    """
    cheapest = mean_cost_usd.double().min()
    free_usd = remaining_usd - (remaining_queries - 1) * cheapest
    return mean_cost_usd <= free_usd.clamp(min=cheapest)[:, None]


def experts_by_cost(mean_cost_usd: Tensor) -> Tensor:
    """The experts by rising mean cost [K]; [K] int64."""
    return mean_cost_usd.argsort(stable=True)


def usd_per_query(remaining_usd: Tensor, remaining_queries: Tensor) -> Tensor:
    """What may be spent on each of the remaining queries, [B] float64."""
    return remaining_usd / remaining_queries.clamp(min=1)


def paid_range_usd(mean_cost_usd: Tensor) -> tuple[float, float]:
    """The lowest and the highest mean cost [K] above 0; 1 and 1 where all experts are free."""
    paid = mean_cost_usd[mean_cost_usd > 0]
    return (float(paid.min()), float(paid.max())) if len(paid) else (1.0, 1.0)


def price_grid(mean_cost_usd: Tensor, n: int, first: float, last: float) -> Tensor:
    """`n` prices in score a dollar, falling geometrically, [n] float32.

    The first makes a call of the cheapest expert that is not free cost the score `first`, the last makes one of the
    most expensive expert cost the score `last`.
    """
    low, high = paid_range_usd(mean_cost_usd)
    powers = torch.linspace(0, 1, n, dtype=torch.float64, device=mean_cost_usd.device)
    return (first / low * (last / first * low / high) ** powers).float()
