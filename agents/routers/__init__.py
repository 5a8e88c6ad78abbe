"""Routers without reinforcement learning, for the agent to beat: one file a family.

All choose as `Router.choose` says and know what the agent may know: scores and costs of the training split, and val to
select settings by. What looks at the query comes once for each kind of estimate, so that a comparison with the agent
tells better estimates from better use of the same ones; planned ones use them as the agent does before training.
"""

from __future__ import annotations

from agents import estimators
from agents.estimators import Estimates
from agents.policies.answer_model import AnswerModel
from agents.routers.base import Router, within_reserve
from agents.routers.boosted import TwoStageTrees
from agents.routers.cascade import Cascade, Gains, Majority, Scorer
from agents.routers.cascade_routing import CascadeRouting
from agents.routers.panels import Panels
from agents.routers.planned import Planned
from agents.routers.priced import FixedPrice, PacedPrice
from agents.routers.static import BestSingle, Cheapest, FixedMixture, Random
from agents.routers.two_step import TwoStep
from leeroo_env.table import ExpertTable

ESTIMATES = {
    "domain means": estimators.domain_mean_estimates,
    "kNN": estimators.knn_estimates,
    "kernel ridge": estimators.kernel_ridge_estimates,
    "MLP": estimators.mlp_estimates,
    "LinUCB": estimators.linucb_estimates,
}

__all__ = [
    "ESTIMATES",
    "BestSingle",
    "Cascade",
    "CascadeRouting",
    "Cheapest",
    "FixedMixture",
    "FixedPrice",
    "Majority",
    "PacedPrice",
    "Planned",
    "Random",
    "Router",
    "TwoStageTrees",
    "TwoStep",
    "multi_call_routers",
    "one_call_routers",
    "within_reserve",
]


def one_call_routers(table: ExpertTable, horizon: int, seed: int = 0) -> dict[str, Router]:
    """The one-call routers that every report shows beside the agent, by name.

    Args:
        table: what they know; only its train and val splits are looked at.
        horizon: queries an episode, for which fixed prices are tuned.
        seed: of lotteries and estimates.
    """
    routers: dict[str, Router] = {
        "random": Random(table, seed),
        "cheapest": Cheapest(table),
        "best single": BestSingle(table),
        "best mixture": FixedMixture(table, seed),
    }
    for name, estimate in ESTIMATES.items():
        estimated = estimate(table, seed)
        routers[f"paced {name}"] = PacedPrice(table, estimated)
        routers[f"fixed price {name}"] = FixedPrice(table, estimated, horizon)
        routers[f"planned {name}"] = Planned(table, estimated, seed)
        if name == "kernel ridge":
            routers[f"two-step {name}"] = TwoStep(table, estimated)
    return routers


def multi_call_routers(
    table: ExpertTable,
    estimates: Estimates,
    max_calls: int,
    seed: int = 0,
    answer_model: AnswerModel | None = None,
) -> dict[str, Router]:
    """Routers that ask several experts about a query, by name.

    Args:
        table: what they know; only its train split is looked at.
        estimates: of all rows, those of training rows out of fold; the same for all routers.
        max_calls: M, above 1.
        seed: of folds, samples and lotteries.
        answer_model: where it has been fitted to the training rows already.
    """
    panels = Panels(table, estimates, max_calls, seed)
    return {
        "majority": Majority(panels, estimates, max_calls, seed),
        "cascade": Cascade(panels, Scorer(panels), estimates, max_calls, seed),
        "cascade routing": CascadeRouting(table, estimates, max_calls, seed, answer_model),
        "two-stage trees": TwoStageTrees(panels, Gains(panels), estimates, max_calls, seed),
    }
