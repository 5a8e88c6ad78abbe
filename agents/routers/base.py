"""What a router is, and the reserve that all of them keep.

B episodes, N queries in the table, K experts, F features of a query.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from agents.estimators.base import Estimates


class Router(Protocol):
    """Anything that chooses experts. A router may also have `begin`, see `agents.evaluation.evaluate.evaluate`.

    One that asks several experts about a query has `max_calls`, how many at most, and its `choose` takes a fourth
    argument, the `agents.policies.answer_model.Calls` made about the query at hand; K is the action that delivers.
    """

    @property
    def features(self) -> Tensor | Estimates | None:
        """What the router sees of each row of the table, [N, F] or estimates; None: the embeddings."""
        ...

    def choose(self, seen: Any, remaining_usd: Tensor, remaining_queries: Tensor, *calls: Any) -> Tensor:
        """The expert that answers each query at hand.

        Args:
            seen: the queries' rows of `features`.
            remaining_usd: [B] float64, dollars left.
            remaining_queries: [B] int64, queries left, this one included.

        Returns:
            [B] int64, indices of experts.
        """
        ...


def within_reserve(mean_cost_usd: Tensor, remaining_usd: Tensor, remaining_queries: Tensor) -> Tensor:
    """The experts whose mean cost [K] leaves what the rest of the queries needs at the cheapest's; [B, K] bool.

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
