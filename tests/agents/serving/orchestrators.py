"""Orchestrators and routers for tests of serving, made in a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from agents import Orchestrator
from agents.estimators.ensemble import fit_predictor, table_estimates
from agents.estimators.evidence import fit_evidence
from agents.policies.bid_price import BidPricePolicy, estimate_features
from agents.policies.description import describe_policy
from agents.policies.io import empty_policy
from agents.policies.multi_call import start_from_plan
from agents.routers import Context, Router
from leeroo_env import ExpertTable
from leeroo_env.dynamics import make_rules

NAMES = ["alpha", "beta", "gamma"]
RELIABILITY = (0.3, 0.4, 0.9)


class SecondOpinion(Router):
    """Asks two experts, and a third where these do not agree."""

    max_calls = 3

    def __init__(self, order: tuple[int, int, int], n_experts: int, features: Tensor | None = None):
        self.order, self.deliver, self.features = torch.tensor(order), n_experts, features
        self.told: list[tuple[float, int]] = []

    def choose(self, context: Context) -> Tensor:
        calls = context.calls
        assert calls is not None
        self.told += zip(context.remaining_usd.tolist(), context.remaining_queries.tolist(), strict=True)
        agree = (calls.group[:, 0] >= 0) & (calls.group[:, :1] == calls.group[:, :2]).all(dim=1)
        done = (calls.made == 2) & agree
        return torch.where(done, self.deliver, self.order[calls.made])


def orchestrator_of(
    table: ExpertTable, max_calls: int = 1, horizon: int = 24, planned: bool = True, told: bool = False
) -> Orchestrator:
    """A bid-price policy as training begins with it; if it is not `planned`, money has no value to it. `told`: it
    observes what calls tell of their answers."""
    predictor = fit_predictor(table)
    estimates = table_estimates(table, predictor)
    scale = table.cost_scale()
    calls: dict[str, Any] = {"max_calls": max_calls, "reliability": estimates.reliability()}
    fitted = fit_evidence(table, predictor.rows, estimates) if told else None
    told_by_calls = fitted and fitted[1]
    rules = make_rules(
        table, "train", horizon, **calls, features=estimate_features(estimates, scale), evidence=told_by_calls
    )
    prices = {"mean_cost_usd": scale.mean_usd.tolist(), "price_range_usd": [scale.low_usd, scale.high_usd]}
    settings = {**prices, "horizon": horizon}
    settings |= {"max_calls": max_calls} if max_calls > 1 else {}
    description = describe_policy(rules, "ppo", settings, "bid-price")
    policy = empty_policy(description)
    assert isinstance(policy, BidPricePolicy)
    if planned:
        with patch("agents.policies.multi_call.WEIGHING_QUERIES", 2_048):
            start_from_plan(policy, rules, predictor.rows, predictor.out_of_fold)
    policy.set_training_mode(False)
    if fitted is None:
        return Orchestrator(policy, description, predictor)
    description = description.model_copy(update={"evidence_columns": fitted[0].columns})
    return Orchestrator(policy, description, predictor, fitted[0])


def rated_orchestrator(max_calls: int = 1, planned: bool = True) -> Orchestrator:
    """Knows how often the experts of `rated_table` are right."""
    return orchestrator_of(rated_table(), max_calls, planned=planned)


def rated_table(names: Sequence[str] = NAMES) -> ExpertTable:
    """Gamma is right more often than beta, and beta more often than alpha; they cost about the same."""
    rng = np.random.default_rng(0)
    scores = (rng.uniform(size=(90, 3)) < RELIABILITY).astype(np.float64)
    costs = np.broadcast_to([0.004, 0.005, 0.006], (90, 3))
    split = [("train", "val", "test")[i % 3] for i in range(90)]
    answers = np.where(scores > 0, "right", [NAMES] * 90).astype(object)
    return ExpertTable.from_arrays(
        "rated", list(names), rng.normal(size=(90, 4)), scores, costs, split=split, answers=answers
    )
