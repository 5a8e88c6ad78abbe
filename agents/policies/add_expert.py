"""One more expert for a policy that has been trained without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from agents.estimators.ensemble import Predictor
from agents.policies.bid_price import BidPricePolicy
from agents.policies.budget_value import cost_ratios, solve_one_call
from agents.policies.io import empty_policy
from leeroo_env import InputError
from leeroo_env.cost_scale import CostScale


def add_expert(
    policy: BasePolicy,
    description: dict[str, Any],
    predictor: Predictor,
    name: str,
    embeddings: Tensor,
    scores: Tensor,
    costs_usd: Tensor,
    texts: Sequence[str] | None,
) -> tuple[BasePolicy, dict[str, Any], Predictor]:
    """The policy, its description and its predictor with an expert more, from m queries' outcomes.

    Args:
        policy: a `BidPricePolicy` for K experts.
        description: of `agents.policies.io.describe_policy`.
        predictor: for K experts.
        name: of the new one, which becomes the last.
        embeddings: [m, D].
        scores: [m].
        costs_usd: [m].
        texts: [m], the queries' texts, if known.
    """
    assert isinstance(policy, BidPricePolicy)
    if description["max_calls"] > 1:
        raise InputError(f"expert {name}: this policy compares answers, and knows none of the new one's; train with it")
    grown = predictor.with_expert(embeddings, scores, costs_usd, texts)
    mean_cost_usd = [*description["mean_cost_usd"], float(costs_usd.mean())]
    low_usd, high_usd = description["price_range_usd"]
    if not low_usd**2 / high_usd <= mean_cost_usd[-1] <= high_usd**2 / low_usd:
        raise InputError(
            f"expert {name}: costs {mean_cost_usd[-1]:.3g} dollars a query, too far from the others' {low_usd:.3g} to "
            f"{high_usd:.3g} for this policy; train one with it"
        )
    more = {
        "experts": [*description["experts"], name],
        "mean_cost_usd": mean_cost_usd,
        "policy_kwargs": {**description["policy_kwargs"], "mean_cost_usd": mean_cost_usd},
        "feature_dim": 2 * len(mean_cost_usd),
    }
    estimated_usd = grown.out_of_sample(embeddings, texts).cost_usd[:, -1:]
    its_ratios = cost_ratios(estimated_usd, costs_usd[:, None], costs_usd.mean()[None])
    ratios = torch.cat([policy.network.cost_ratios, its_ratios], dim=1)
    plan = solve_one_call(grown.out_of_fold, ratios, CostScale(embeddings.new_tensor(mean_cost_usd), low_usd, high_usd))
    description = {**description, **more}
    taller = empty_policy(description).to(policy.device)
    assert isinstance(taller, BidPricePolicy)
    taller.load_state_dict({k: _widen(k, v, len(mean_cost_usd) - 1) for k, v in policy.state_dict().items()})
    taller.start_from(plan)
    taller.set_training_mode(False)
    return taller, description, grown


def _widen(name: str, weights: Tensor, k: int) -> Tensor:
    """A tensor of the policy for `k` experts, with room for one more; it has no effect on the networks at first."""
    if name.endswith("critic.0.weight"):
        score, cost, budget = weights.split([k, k, 2], dim=1)
        none = weights[:, :1] * 0
        return torch.cat([score, none, cost, none, budget], dim=1)
    if name.endswith(("bias.2.weight", "bias.2.bias")):
        return torch.cat([weights, weights[:1] * 0])
    if name.endswith("cost_ratios"):
        return torch.cat([weights, weights[:, :1]], dim=1)
    return weights
