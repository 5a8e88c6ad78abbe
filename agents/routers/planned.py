"""A router by the budget value; with the agent's own estimates it is the policy that training starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.estimators import Estimates
from agents.policies.budget_value import fit_budget_value
from agents.routers.base import Context, Router
from leeroo_env.dynamics import action_mask
from leeroo_env.table import ExpertTable


class Planned(Router):
    """The expert with the highest estimated score less the opportunity cost of its estimated cost."""

    def __init__(self, table: ExpertTable, estimates: Estimates, seed: int = 0):
        """Args: the table, estimates of all its rows, and the seed of the sample."""
        self.features = estimates
        rows = table.rows("train")
        self.plan = fit_budget_value(table, rows, estimates[rows], seed)

    def choose(self, context: Context) -> Tensor:
        estimates = context.estimates
        usd, queries = context.remaining_usd.float()[:, None], context.remaining_queries.float()[:, None]
        allowed = action_mask(self.plan.cost_scale.mean_usd, context.remaining_usd)
        terms = self.plan.considered_terms(estimates.score, estimates.cost_usd, usd, queries, allowed)
        affordable, price, allowed, _ = terms
        return (estimates.score * affordable - price).masked_fill(~allowed, -torch.inf).argmax(dim=1)
