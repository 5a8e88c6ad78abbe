"""Computes what money is worth, and whether a conversation should go on with another expert.

B queries, K experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agents.policies.bid_price import BidPricePolicy
from experts.usage import Price
from leeroo_env.dynamics import HORIZON

SWITCH_GAIN = 0.02  # in score: what another expert must promise beyond all costs for a conversation to move there
PRICED_SHARE = 0.05  # of what is left, at which the price of money is read


@torch.inference_mode()
def usd_price(policy: Any, usd: float, queries: int) -> float | None:
    """What the next dollars are worth, in score per dollar, by the policy's budget value; None where it has none.

    Args:
        policy: of an orchestrator.
        usd: dollars left.
        queries: how many queries they are for, this one included.
    """
    if not isinstance(policy, BidPricePolicy):
        return None
    value = policy.network.budget_value
    rest = torch.tensor([float(min(queries, HORIZON) - 1)])
    usd *= float(rest + 1) / queries
    part = PRICED_SHARE * max(usd, 1e-30)
    before, after = (value.value_at(rest, torch.tensor([one], dtype=torch.float32)) for one in (usd, usd - part))
    return max(0.0, float((before - after) / part))


def no_easier(features: Tensor, earlier: Tensor, n_experts: int) -> Tensor:
    """Features of turns, estimates [B, 2K], from their own and those of the turns before them: a turn is taken to be no
    easier for any expert than the turn before, since "go on" means what came before it."""
    score = features[:, :n_experts].minimum(earlier[:, :n_experts])
    return torch.cat([score, features[:, n_experts:].maximum(earlier[:, n_experts:])], dim=1)


def stays(
    score: Sequence[float] | None,
    cost_usd: Sequence[float],
    usd_price: float | None,
    choice: int,
    current: int,
    lost_usd: float,
) -> bool:
    """Whether a conversation stays with its current expert although the policy would choose another.

    It does unless the gain in score and money pays for the switch: for what its prompt would have cost less out of the
    current expert's cache, and for the break that another voice is.

    Args:
        score: [K], estimated; None where the policy estimates none.
        cost_usd: [K], estimated.
        usd_price: what money is worth.
        choice: the policy's.
        current: the expert of the turn before.
        lost_usd: the discount on cached tokens that a switch loses.
    """
    if score is None or choice == current:
        return True
    saved_usd = cost_usd[current] - cost_usd[choice] - lost_usd
    return score[choice] - score[current] + (usd_price or 0.0) * saved_usd < SWITCH_GAIN


def cache_discount_usd(price: Price, tokens: int) -> float:
    """What a prompt of so many tokens costs less where all of them are in an expert's cache."""
    cached = price.usd_per_mtok_cached
    return tokens * (price.usd_per_mtok_in - (price.usd_per_mtok_in / 2 if cached is None else cached)) / 1e6


def reason(names: Sequence[str], choice: int | None, score: Sequence[float] | None, cost_usd: Sequence[float]) -> str:
    """Why an expert was chosen, for people.

    Args:
        names: [K], of the experts.
        choice: None: no expert can be paid.
        score: [K], estimated; None where the policy estimates none.
        cost_usd: [K], estimated.
    """
    if choice is None:
        return "what is left pays for no expert that can be asked now"
    if score is None:
        return "the policy's choice"
    best = max(range(len(names)), key=score.__getitem__)
    more, more_usd = score[best] - score[choice], cost_usd[best] - cost_usd[choice]
    if more <= 0:
        return f"the most likely to be right ({score[choice]:.0%})"
    if more_usd <= 0:
        return f"the policy's choice, although {names[best]} is likelier to be right by {more:.1%}"
    return f"{names[best]} is likelier to be right by {more:.1%}, which is not worth ${more_usd:.2g} more"
