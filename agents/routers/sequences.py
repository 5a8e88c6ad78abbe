"""Routers that ask the experts of a list one after another; the list is chosen by the budget per query.

Many policies are tried on the training queries; those that are best at some price make up the upper convex hull of mean
score over mean cost. The budget per query lies between two neighbours on it, and a lottery between them costs just
that: no policy, and no mixture of policies, does better on the training queries (the constrained optimum of Lagrange
relaxation, Everett, 1963). The state of a query is the calls made: later calls follow the list that these began.

B episodes, K experts, P policies, C experts a list at most, X prices.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agents.estimators import Estimates
from agents.policies.answer_model import Calls
from agents.routers.base import Context, LotteryRouter, experts_by_cost, usd_per_query, within_reserve


@dataclass(frozen=True)
class Policies:
    """Policies that are best at some price.

    Attributes:
        order: [P, C] int64, the experts to ask, in order; -1 after the last.
        cost_usd: [P] float64, mean cost on the training queries.
        tried: [P] int64, their places among the policies tried.
        hull: [K, X] int64, the best at each price, by rising cost; row n - 1 of those with only the n cheapest experts.
    """

    order: Tensor
    cost_usd: Tensor
    tried: Tensor
    hull: Tensor

    @cached_property
    def hull_cost_usd(self) -> Tensor:
        """[K, X] float64, the mean costs of `hull`."""
        return self.cost_usd[self.hull]

    @cached_property
    def place(self) -> Tensor:
        """[K + 1, P] float32, experts' places in each policy's order, C where they have none; row K, no call: -1."""
        (p, c), k = self.order.shape, len(self.hull)
        place = torch.full((k + 1, p), float(c), device=self.order.device)
        at = torch.arange(c, device=place.device).float()[:, None].expand(c, p)
        place.scatter_(0, self.order.where(self.order >= 0, k).T, at)
        place[k] = -1
        return place


def best_at_prices(order: Tensor, score: Tensor, cost_usd: Tensor, prices: Tensor, mean_cost_usd: Tensor) -> Policies:
    """`Policies` of all that were tried: `order` [P, C], mean `score` [P] and `cost_usd` [P]; `prices` [X] fall.

    The first must be the cheapest expert alone.
    """
    rank = experts_by_cost(mean_cost_usd).argsort()[order.clamp(min=0)].masked_fill(order < 0, 0).amax(dim=1)
    net = score.double() - prices.double()[:, None] * cost_usd.double()  # [X, P]
    ranks = rank.unique()  # of a large pool few experts occur
    hulls = torch.stack([net.masked_fill(rank > n, -torch.inf).argmax(dim=1) for n in ranks.tolist()])
    hull = hulls[torch.searchsorted(ranks, torch.arange(len(mean_cost_usd), device=rank.device), right=True) - 1]
    hull[:, 0] = 0
    used, hull = hull.unique(return_inverse=True)
    return Policies(order[used], cost_usd[used].double(), used, hull)


class SequenceRouter(LotteryRouter):
    """Chooses the list and asks its experts in order; subclasses decide whether to continue after each answer."""

    features: Estimates

    def __init__(self, features: Estimates, mean_cost_usd: Tensor, max_calls: int, policies: Policies, seed: int):
        super().__init__(seed, features.device)
        self.features, self.mean_cost_usd, self.max_calls = features, mean_cost_usd, max_calls
        self.policies = policies

    @abstractmethod
    def continues(self, policy: Tensor, estimates: Estimates, calls: Calls) -> Tensor:
        """[B] bool, whether the `policy` [B] asks the next expert of its list; ignored before the first call."""

    @torch.inference_mode()
    def choose(self, context: Context) -> Tensor:
        estimates, calls = context.estimates, context.calls
        assert calls is not None
        policy, found = self._policy(context, calls)
        order = self.policies.order[policy]
        last = order.shape[1] - 1
        following = order.gather(1, calls.made.clamp(max=last)[:, None]).squeeze(1)
        following = following.masked_fill(calls.made > last, -1)
        first = calls.made == 0
        asks = found & (following >= 0) & (first | self.continues(policy, estimates, calls))
        asks &= can_pay(self.mean_cost_usd, context, following.clamp(min=0)[:, None]).squeeze(1)
        return ask_or_deliver(self.mean_cost_usd, following, asks, calls)

    def _policy(self, context: Context, calls: Calls) -> tuple[Tensor, Tensor]:
        """The policy of each query [B], and whether there is one [B]: the nearest on the hull to the one drawn
        among those that would have asked the same experts."""
        before_usd = context.remaining_usd + spent_usd(context.estimates, calls)
        n = within_reserve(self.mean_cost_usd, before_usd, context.remaining_queries).sum(dim=1) - 1
        hull = self.policies.hull[n]  # [B, X]
        drawn = self.mix(self.policies.hull_cost_usd[n], usd_per_query(before_usd, context.remaining_queries))
        answered = calls.asked >= 0
        place = self.policies.place[calls.asked.where(answered, len(self.mean_cost_usd))].amax(dim=1)  # [B, P]
        same = (place < calls.made[:, None]) & (answered.sum(dim=1) == calls.made)[:, None]
        same = same.gather(1, hull)
        distance = (torch.arange(hull.shape[1], device=hull.device) - drawn[:, None]).abs()
        nearest = distance.masked_fill(~same, hull.shape[1]).argmin(dim=1, keepdim=True)
        return hull.gather(1, nearest).squeeze(1), same.gather(1, nearest).squeeze(1)


def spent_usd(estimates: Estimates, calls: Calls) -> Tensor:
    """Estimated cost of the answered calls about each query, [B]."""
    cost_usd = estimates.cost_usd
    return (cost_usd.gather(1, calls.asked.clamp(min=0)) * (calls.asked >= 0)).sum(dim=1)


def can_pay(mean_cost_usd: Tensor, context: Context, expert: Tensor) -> Tensor:
    """Whether asking `expert` [B, k] leaves the reserve, and is not cut off if its estimated cost is right; bool."""
    cheapest = mean_cost_usd.double().min()
    free_usd = context.remaining_usd - (context.remaining_queries - 1) * cheapest
    estimated = context.estimates.cost_usd.gather(1, expert)
    return (mean_cost_usd[expert] <= free_usd[:, None]) & (estimated <= context.remaining_usd[:, None])


def ask_or_deliver(mean_cost_usd: Tensor, expert: Tensor, asks: Tensor, calls: Calls) -> Tensor:
    """`expert` [B] where it `asks` [B], else K; where there is no answer yet, the cheapest. [B] int64."""
    unanswered = (calls.asked < 0).all(dim=1)
    otherwise = torch.where(unanswered, mean_cost_usd.argmin(), len(mean_cost_usd))
    return torch.where(asks, expert, otherwise)
