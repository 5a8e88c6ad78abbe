"""Values and draws the pairs of query and expert whose answers are worth most for their cost.

An answer is valuable where it is open whether the agent would choose the expert, where the expert's score is uncertain,
and where it is cheap. Pairs are drawn with probability proportional to sqrt(choice variance x score variance / cost),
as in Neyman's allocation (On the two different aspects of the representative method, 1934), whose sample sizes are
proportional to the standard deviation over the root of the cost.

B queries, K experts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.estimators.base import Estimates
from agents.policies.budget_value import MIN_COST_RATIO, BudgetValue

N_BUDGETS = 6
TEMPERATURE = 0.1  # typical error of estimated net values
LEAST_PROBABILITY = 0.02  # estimated scores are clamped to this distance from 0 and 1
UNIFORM_SHARE = 0.5  # of the new queries, spread uniformly over the domains


def choice_variance(estimates: Estimates, value: BudgetValue, queries: int) -> Tensor:
    """How open it is whether each expert is chosen, [B, K] from 0 to 1/4: the mean of p (1 - p) over budgets.

    p is the probability that the expert has the highest net value, given the typical error of these.

    Args:
        estimates: of B queries.
        value: value of the remaining budget.
        queries: number of queries left in the episode.
    """
    score, scale = estimates.score, value.cost_scale
    low, high = scale.low_usd, scale.low_usd * np.exp(scale.log_range)
    variance = torch.zeros_like(score)
    for budget in np.geomspace(low, high, N_BUDGETS):
        remaining_usd = score.new_full((len(score), 1), float(budget) * queries)
        affordable, price = value.call_terms(estimates.cost_usd, remaining_usd, torch.full_like(remaining_usd, queries))
        probability = torch.softmax((score * affordable - price) / TEMPERATURE, dim=1)
        variance += probability * (1 - probability) / N_BUDGETS
    return variance


def acquisition_value(estimates: Estimates, value: BudgetValue, queries: int) -> Tensor:
    """Value of each answer, [B, K], up to a factor; arguments as of `choice_variance`."""
    score, scale = estimates.score.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY), value.cost_scale
    least_usd = (MIN_COST_RATIO * scale.mean_usd).clamp(min=1e-3 * scale.low_usd)  # some experts are free
    cost_usd = estimates.cost_usd.maximum(least_usd)
    return (choice_variance(estimates, value, queries) * score * (1 - score) / cost_usd).sqrt()


def draw_pairs(values: Tensor, allowed: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Pairs of query and expert in the order in which to ask them, [P, 2] int64, drawn without replacement.

    Successive sampling by exponential keys (Efraimidis and Spirakis, Weighted random sampling with a reservoir, 2006).

    Args:
        values: [B, K], not negative; probabilities are proportional to them.
        allowed: [B, K] bool, the pairs to draw from.
    """
    weights = np.where(allowed.cpu().numpy(), values.double().cpu().numpy(), 0.0).ravel()
    keys = rng.exponential(size=len(weights)) / np.maximum(weights, 1e-300)
    order = np.argsort(keys, kind="stable")[: int((weights > 0).sum())]
    return np.stack(np.unravel_index(order, values.shape), axis=1)


def draw_domains(
    domains: tuple[str, ...], known: list[str], values: Tensor, n: int, rng: np.random.Generator
) -> dict[str, int]:
    """Number of queries, n in all, to write for each domain: half uniform, half by the value of answers to known ones.

    Args:
        domains: the domains to write for.
        known: [B], domains of known queries.
        values: [B, K], their `acquisition_value`.
    """
    by_query = values.sum(dim=1).double().cpu().numpy()
    domain = np.array(known)
    mean = np.array([by_query[domain == name].mean() if (domain == name).any() else 0.0 for name in domains])
    mean = mean / mean.sum() if mean.sum() > 0 else np.full(len(domains), 1 / len(domains))
    share = UNIFORM_SHARE / len(domains) + (1 - UNIFORM_SHARE) * mean
    return dict(zip(domains, rng.multinomial(n, share / share.sum()).tolist(), strict=True))
