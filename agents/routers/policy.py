"""A trained policy of stable-baselines3 as a router: the most preferred expert that the remaining budget covers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from agents.policies.bid_price import BidPricePolicy
from agents.policies.description import PolicyDescription
from agents.routers.function import FunctionRouter


class PolicyRouter(FunctionRouter):
    """A policy that chooses greedily; experts whose mean cost exceeds what is left are not chosen."""

    def __init__(self, policy: BasePolicy, description: PolicyDescription, features: Tensor | None = None):
        """Args: the policy, its description, and the features [N, F] it observes of the rows
        of a table; None: those of the rules."""
        scale = description.cost_scale(policy.device)
        super().__init__(partial(action_scores, policy), scale, description.max_calls, features)
        self.policy, self.description = policy, description


@torch.inference_mode()
def action_scores(policy: Any, observations: Tensor) -> Tensor:
    """The policy's preference for each action, log-probabilities or action values; [B, actions]."""
    if isinstance(policy, BidPricePolicy):
        return policy.log_probabilities(observations)
    if hasattr(policy, "q_net"):
        return policy.q_net(observations)
    if hasattr(policy, "quantile_net"):
        return policy.quantile_net(observations).mean(dim=1)
    return policy.get_distribution(observations).distribution.logits
