"""Makes a router of any policy: a function of the observation, such as a torch module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from agents.routers.base import Context, Router
from leeroo_env.cost_scale import CostScale
from leeroo_env.dynamics import action_mask, budget_features, call_mask
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable


class FunctionRouter(Router):
    """A policy that is a function of observations; actions that are not open are never chosen.

    The observation is that of `leeroo_env.LeerooEnv`: the query's features, with several calls the features of the
    calls, and the two numbers of the budget.
    """

    features: Tensor | None

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        cost_scale: CostScale,
        max_calls: int = 1,
        features: Tensor | None = None,
    ):
        """
        Args:
            function: from observations [B, F + 2] float32, or with several calls [B, F + 3K + 5], to the preferred
                action of each, [B] integers, or to preferences, [B, K] or [B, K + 1], such as logits or action values.
            cost_scale: the experts' mean costs, as in the rules that the policy was trained by.
            max_calls: M, the most experts that it asks about a query.
            features: [N, F], what it observes of the rows of a table; None: the features of the rules.
        """
        self.function, self.cost_scale, self.max_calls, self.features = function, cost_scale, max_calls, features

    def choose(self, context: Context) -> Tensor:
        return self.preferences(context).argmax(dim=1)

    @torch.no_grad()
    def preferences(self, context: Context) -> Tensor:
        """As `Router.preferences`; -inf for actions that are not open."""
        assert isinstance(context.features, Tensor)
        parts = [context.features, budget_features(self.cost_scale, context.remaining_usd, context.remaining_queries)]
        if self.max_calls > 1:
            assert context.calls is not None and context.calls.features is not None
            parts.insert(1, context.calls.features)
            mask = call_mask(self.cost_scale.mean_usd, context.remaining_usd, context.calls.features)
        else:
            mask = action_mask(self.cost_scale.mean_usd, context.remaining_usd)
        scores = _preferences(self.function(torch.cat(parts, dim=1)), mask)
        return scores.masked_fill(~mask, -torch.inf)


def from_function(
    function: Callable[[Tensor], Any], table: ExpertTable, max_calls: int = 1, features: Tensor | None = None
) -> FunctionRouter:
    """The router of a policy that was trained on a table; arguments as `FunctionRouter`."""
    return FunctionRouter(function, table.cost_scale(), max_calls, features)


def _preferences(result: Any, mask: Tensor) -> Tensor:
    """What a function returned as preferences like `mask` [B, actions]. Raises InputError where it is neither actions
    nor preferences."""
    scores = torch.as_tensor(result, device=mask.device)
    if scores.shape == mask.shape and scores.is_floating_point():
        return scores.nan_to_num(nan=-torch.inf)
    b, n = mask.shape
    whole = not (scores.is_floating_point() or scores.is_complex() or scores.dtype == torch.bool)
    if scores.shape == (b,) and whole and bool(((scores >= 0) & (scores < n)).all()):
        return torch.nn.functional.one_hot(scores.long(), n).float()
    raise InputError(
        f"the policy returned {str(scores.dtype).removeprefix('torch.')} {list(scores.shape)} for {b} observations: "
        f"must be actions, integers [{b}] from 0 to {n - 1}, or preferences, floating point [{b}, {n}]"
    )
