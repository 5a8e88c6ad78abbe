"""Adds an expert to a trained policy, without training, from its outcomes on some queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from agents.estimators.base import Estimates
from agents.estimators.ensemble import Predictor
from agents.policies.answer_model import simulate_answers
from agents.policies.bid_price import BidPricePolicy
from agents.policies.budget_value import BudgetValue, cost_ratios, solve_call_sequences, solve_one_call
from agents.policies.call_value import fit_continuation
from agents.policies.description import PolicyDescription
from agents.policies.io import empty_policy
from agents.policies.multi_call import SAMPLE, MultiCallPolicy, simulated_sequences
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
        budget_value = _grown_value(policy, grown, grown_predictor.out_of_fold, ratios, scale)
    else:
        budget_value = solve_one_call(grown_predictor.out_of_fold, ratios, scale)
    grown.start_from(budget_value)
    grown.set_training_mode(False)
    return grown, description, grown_predictor


def _silence(scores: Tensor, answers: Sequence[str | None], prior: float) -> float:
    """How often wrong answers [m] are missing, as if there were ten more with the chance `prior`."""
    fails = (scores < 0.5).tolist()
    missing = sum(fail and answer is None for fail, answer in zip(fails, answers, strict=True))
    return (missing + PRIOR_ANSWERS * prior) / (sum(fails) + PRIOR_ANSWERS)


def _grown_value(
    policy: MultiCallPolicy, grown: MultiCallPolicy, estimates: Estimates, ratios: Tensor, scale: CostScale
) -> BudgetValue:
    """The budget value of several calls with the new expert: what it was, and what simulated answers of all experts
    are worth more than those of the others. The value of continuing is fitted again to them, too.

    The new expert's answers beside the others' are known to nobody, so the answer model draws them.

    Args:
        policy: for K experts.
        grown: for K + 1.
        estimates: out of fold, of the training queries, for K + 1.
        ratios: [J, K + 1], of costs to their estimates.
        scale: for K + 1.
    """
    generator = torch.Generator(estimates.device).manual_seed(0)
    call_value = grown.network.call_value
    answer_ids = simulate_answers(grown.answer_model, estimates.score, generator)
    fit_continuation(call_value, estimates.score, estimates.cost_usd / scale.high_usd, answer_ids, generator)
    sample = torch.randperm(len(estimates), generator=torch.Generator().manual_seed(0))[:SAMPLE]
    sample = sample.to(estimates.device)
    estimates, answer_ids = estimates[sample], answer_ids[sample]
    draw = torch.randint(len(ratios), estimates.score.shape, generator=generator, device=estimates.device)
    costs_usd = estimates.cost_usd * ratios.gather(0, draw)
    values = []
    for one, k in ((policy, ratios.shape[1] - 1), (grown, ratios.shape[1])):
        some = Estimates(estimates.score[:, :k], estimates.cost_usd[:, :k])
        spent_usd, value = simulated_sequences(
            one.network.call_value, some, answer_ids[:, :k], costs_usd[:, :k], scale.high_usd
        )
        known = replace(scale, mean_usd=scale.mean_usd[:k])
        values.append(solve_call_sequences(spent_usd, value, ratios[:, :k], known).value)
    more = (values[1] - values[0]).clamp(min=0)
    return BudgetValue((policy.network.value + more).cummax(dim=1).values, ratios, scale)


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
