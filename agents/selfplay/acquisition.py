"""What to ask next: answers that the agent's choices hang on, and of which least is known for the money.

An answer is worth asking for where the expert is neither sure to be chosen nor sure to be passed over, where its score
is uncertain, and where it is cheap: queries and experts are drawn with probabilities in proportion to
sqrt(choice_variance x variance / cost), the shape of Neyman's allocation (On the two different aspects of the
representative method, 1934), whose sample sizes go with standard deviation over the root of cost.

B queries, K experts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.estimators.base import Estimates
from agents.policies.budget_value import MIN_COST_RATIO, BudgetValue

BUDGETS = 6
TEMPERATURE = 0.1  # how far estimated net values are off, roughly
LEAST_CHANCE = 0.02  # no estimated score is believed to be nearer to 0 or 1
EVEN = 0.5  # share of the new queries that is spread evenly over the domains


def choice_variance(estimates: Estimates, plan: BudgetValue, queries: int) -> Tensor:
    """How open it is whether each expert is chosen, [B, K] from 0 to 1/4: the mean of p (1 - p) over budgets.

    p is the chance that an expert is the best choice in the middle of an episode, if net values are off a little.

    Args:
        estimates: of B queries.
        plan: what money is worth.
        queries: left in the episode.
    """
    score, cost_usd = estimates.score, estimates.cost_usd
    scale = plan.cost_scale
    low, high = scale.low_usd, scale.low_usd * np.exp(scale.log_range)
    total = torch.zeros_like(score)
    for budget in np.geomspace(low, high, BUDGETS):
        usd = score.new_full((len(score), 1), float(budget) * queries)
        answered, price = plan.call_terms(cost_usd, usd, torch.full_like(usd, queries))
        chance = torch.softmax((score * answered - price) / TEMPERATURE, dim=1)
        total += chance * (1 - chance) / BUDGETS
    return total


def acquisition_value(estimates: Estimates, plan: BudgetValue, queries: int) -> Tensor:
    """How much each answer is worth asking for, [B, K], up to a factor; arguments as of `choice_variance`."""
    score, cost_usd = estimates.score, estimates.cost_usd
    chance = score.clamp(LEAST_CHANCE, 1 - LEAST_CHANCE)
    scale = plan.cost_scale
    cost_usd = cost_usd.maximum(MIN_COST_RATIO * scale.mean_usd).clamp(min=1e-3 * scale.low_usd)  # some are free
    return (choice_variance(estimates, plan, queries) * chance * (1 - chance) / cost_usd).sqrt()


def draw_pairs(worth: Tensor, free: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Pairs of query and expert in the order in which to ask, [P, 2] int64: drawn without replacement by worth.

    Successive sampling by exponential keys (Efraimidis and Spirakis, Weighted random sampling with a reservoir, 2006).

    Args:
        worth: [B, K], not negative.
        free: [B, K], which may still be asked.
    """
    weight = np.where(free.cpu().numpy(), worth.double().cpu().numpy(), 0.0).ravel()
    keys = rng.exponential(size=len(weight)) / np.maximum(weight, 1e-300)
    order = np.argsort(keys, kind="stable")[: int((weight > 0).sum())]
    return np.stack(np.unravel_index(order, worth.shape), axis=1)


def draw_domains(domains: tuple[str, ...], known: list[str], worth: Tensor, n: int, rng: np.random.Generator) -> dict:
    """How many of n new queries to write for each domain: half evenly, half by what answers there are worth.

    Args:
        domains: those that can be written for.
        known: [B], domains of known queries.
        worth: [B, K], of `acquisition_value` for these.
    """
    each = worth.sum(dim=1).double().cpu().numpy()
    of = np.array(known)
    mean = np.array([each[of == name].mean() if (of == name).any() else 0.0 for name in domains])
    mean = mean / mean.sum() if mean.sum() > 0 else np.full(len(domains), 1 / len(domains))
    share = EVEN / len(domains) + (1 - EVEN) * mean
    return dict(zip(domains, rng.multinomial(n, share / share.sum()).tolist(), strict=True))
