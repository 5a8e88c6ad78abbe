"""Adds an expert to a trained policy, without training, from its outcomes on some queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from agents.estimators.base import Estimates
from agents.estimators.ensemble import Predictor
from agents.policies.answer_model import simulate_answers
from agents.policies.bid_price import BidPricePolicy
from agents.policies.budget_value import cost_ratios, solve_one_call
from agents.policies.call_value import Answers, fit_continuation
from agents.policies.description import PolicyDescription
from agents.policies.io import empty_policy
from agents.policies.multi_call import MultiCallPolicy
from leeroo_env import InputError
from leeroo_env.cost_scale import CostScale

PRIOR_ANSWERS = 10


def add_expert(
    policy: BasePolicy,
    description: PolicyDescription,
    predictor: Predictor,
    name: str,
    embeddings: Tensor,
    scores: Tensor,
    costs_usd: Tensor,
    texts: Sequence[str] | None,
    answers: Sequence[str | None] | None = None,
) -> tuple[BasePolicy, PolicyDescription, Predictor]:
    """The policy, its description and its predictor for K + 1 experts, from the new one's outcomes on m queries.

    Args:
        policy: a `BidPricePolicy` for K experts.
        description: of the policy.
        predictor: for K experts.
        name: of the new one, which becomes the last.
        embeddings: [m, D].
        scores: [m].
        costs_usd: [m].
        texts: [m], the queries' texts, if known.
        answers: [m], its short answers, None where it gave none, if known: a policy of several calls takes from them
            how often the expert gives no answer.

    Raises:
        InputError: the expert's cost is out of the policy's range.
    """
    assert isinstance(policy, BidPricePolicy)
    k = len(description.experts)
    grown_predictor = predictor.with_expert(embeddings, scores, costs_usd, texts)
    mean_cost_usd = (*description.mean_cost_usd, float(costs_usd.mean()))
    low_usd, high_usd = description.price_range_usd
    if not low_usd**2 / high_usd <= mean_cost_usd[-1] <= high_usd**2 / low_usd:
        raise InputError(
            f"expert {name}: costs {mean_cost_usd[-1]:.3g} dollars a query, too far from the others' {low_usd:.3g} to "
            f"{high_usd:.3g} for this policy; train one with it"
        )
    changes = {
        "experts": (*description.experts, name),
        "mean_cost_usd": mean_cost_usd,
        "policy_kwargs": {**description.policy_kwargs, "mean_cost_usd": list(mean_cost_usd)},
        "feature_dim": 2 * len(mean_cost_usd),
    }
    description = description.model_copy(update=changes)
    estimated_usd = grown_predictor.out_of_sample(embeddings, texts).cost_usd[:, -1:]
    new_ratios = cost_ratios(estimated_usd, costs_usd[:, None], costs_usd.mean()[None])
    ratios = torch.cat([policy.network.cost_ratios, new_ratios], dim=1)
    scale = description.cost_scale(embeddings.device)
    grown = empty_policy(description).to(policy.device)
    assert isinstance(grown, BidPricePolicy)
    grown.load_state_dict({key: _widen(key, value, k) for key, value in policy.state_dict().items()})
    if isinstance(policy, MultiCallPolicy) and isinstance(grown, MultiCallPolicy):
        if answers is not None:
            grown.answer_model.silence[-1] = _silence(scores, answers, prior=float(policy.answer_model.silence.mean()))
        _fit_continuation_again(grown, grown_predictor.out_of_fold, scale)
    grown.start_from(solve_one_call(grown_predictor.out_of_fold, ratios, scale))
    grown.set_training_mode(False)
    return grown, description, grown_predictor


def _silence(scores: Tensor, answers: Sequence[str | None], prior: float) -> float:
    """How often wrong answers [m] are missing, as if there were ten more with the chance `prior`."""
    fails = (scores < 0.5).tolist()
    missing = sum(fail and answer is None for fail, answer in zip(fails, answers, strict=True))
    return (missing + PRIOR_ANSWERS * prior) / (sum(fails) + PRIOR_ANSWERS)


def _fit_continuation_again(grown: MultiCallPolicy, estimates: Estimates, scale: CostScale) -> None:
    """Fits the value of continuing to the new expert, too, from estimates of the training queries.

    The new expert's answers beside the others' are known to nobody, so the answer model draws them.
    """
    generator = torch.Generator(estimates.device).manual_seed(0)
    answer_ids = simulate_answers(grown.answer_model, estimates.score, generator)
    cost = estimates.cost_usd / scale.high_usd
    fit_continuation(grown.network.call_value, estimates.score, cost, Answers.of(answer_ids), generator)


def _widen(name: str, weights: Tensor, k: int) -> Tensor:
    """A tensor of the policy for `k` experts, widened for one more."""
    if name.endswith("critic.0.weight"):
        score, cost, budget = weights.split([k, k, 2], dim=1)
        none = weights[:, :1] * 0
        return torch.cat([score, none, cost, none, budget], dim=1)
    if name.endswith(("bias.2.weight", "bias.2.bias")):
        return torch.cat([weights, weights[:1] * 0])
    if name.endswith(("answer_model.silence", "answer_model.loading", "answer_model.trust")):
        return torch.cat([weights, weights.mean(dim=0, keepdim=True)])  # of an average expert
    if name.endswith("cost_ratios"):
        return torch.cat([weights, weights[:, :1]], dim=1)
    return weights
