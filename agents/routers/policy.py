"""A trained policy as a router: the most preferred expert among those that the remaining budget covers."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from agents.policies.description import PolicyDescription
from agents.routers.base import Context, Router
from leeroo_env.dynamics import action_mask, budget_features, call_mask


class PolicyRouter(Router):
    """A policy that chooses greedily; experts whose mean cost exceeds what is left are not chosen."""

    features: Tensor | None

    def __init__(self, policy: BasePolicy, description: PolicyDescription, features: Tensor | None = None):
        """Args: the policy, its description, and the features [N, F] it observes of the rows
        of a table; None: those of the rules."""
        self.policy, self.description, self.features = policy, description, features
        self.cost_scale = description.cost_scale(policy.device)
        self.max_calls = description.max_calls

    def choose(self, context: Context) -> Tensor:
        """As `Router.choose`. With several calls it observes the features of `context.calls`, too."""
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
        scores = action_scores(self.policy, torch.cat(parts, dim=1))
        return scores.masked_fill(~mask, -torch.inf)


def action_scores(policy: Any, observations: Tensor) -> Tensor:
    """The policy's preference for each action, log-probabilities or action values; [B, actions]."""
    if hasattr(policy, "q_net"):
        return policy.q_net(observations)
    if hasattr(policy, "quantile_net"):
        return policy.quantile_net(observations).mean(dim=1)
    return policy.get_distribution(observations).distribution.logits
