"""All routers that the agent is compared with, by the names that reports show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from agents import estimators
from agents.estimators import Estimates
from agents.estimators.models import MODELS, Predicts
from agents.policies.answer_model import AnswerModel
from agents.progress import Bars, silent
from agents.routers.base import Router
from agents.routers.boosted import TwoStageTrees
from agents.routers.cascade import Cascade, Gains, Majority, Scorer
from agents.routers.cascade_routing import CascadeRouting
from agents.routers.panels import Panels
from agents.routers.planned import Planned
from agents.routers.priced import FixedPrice, PacedPrice
from agents.routers.static import BestSingle, Cheapest, FixedMixture, Random
from agents.routers.two_step import TwoStep
from leeroo_env.table import ExpertTable

ESTIMATORS: dict[str, Callable[[ExpertTable, int], Estimates]] = {
    "domain means": estimators.domain_mean_estimates,
    "kNN": estimators.knn_estimates,
    "kernel ridge": estimators.kernel_ridge_estimates,
    "MLP": estimators.mlp_estimates,
    "LinUCB": estimators.linucb_estimates,
}


def one_call_routers(
    table: ExpertTable,
    horizon: int,
    seed: int = 0,
    bars: Bars = silent,
    known: Mapping[str, Estimates] = MappingProxyType({}),
) -> dict[str, Router]:
    """The routers that ask one expert about a query, which every report shows beside the agent, by name.

    Args:
        table: only its train and val splits are used.
        horizon: queries in an episode, for which fixed prices are tuned.
        seed: of lotteries and estimates.
        bars: to show the progress.
        known: estimates that have been made already, by the names of `ESTIMATORS`.
    """
    routers: dict[str, Router] = {
        "random": Random(table, seed),
        "cheapest": Cheapest(table),
        "best single": BestSingle(table),
        "best mixture": FixedMixture(table, seed),
    }
    bar = bars("routers", 2 * len(ESTIMATORS))
    for name, estimator in ESTIMATORS.items():
        estimates = known[name] if name in known else estimator(table, seed)
        bar.update()
        routers[f"paced {name}"] = PacedPrice(table, estimates)
        routers[f"fixed price {name}"] = FixedPrice(table, estimates, horizon)
        routers[f"planned {name}"] = Planned(table, estimates, seed)
        if name == "kernel ridge":
            routers[f"two-step {name}"] = TwoStep(table, estimates)
        bar.update()
    bar.close()
    return routers


def router_names(max_calls: int = 1) -> list[str]:
    """The names of all routers of a report with so many calls a query."""
    kinds = [f"{kind} {name}" for name in ESTIMATORS for kind in ("paced", "fixed price", "planned")]
    several = ["majority", "cascade", "cascade routing", "two-stage trees"] if max_calls > 1 else []
    return ["random", "cheapest", "best single", "best mixture", *kinds, "two-step kernel ridge", *several]


def fit_estimator(name: str, table: ExpertTable, seed: int, own: Predicts) -> Predicts:
    """The estimator that the router of this name observes queries by; `own`, the agent's, if it asks several experts.
    Routers that ignore the query have the least one."""
    found = [estimator for estimator in MODELS if name.endswith(f" {estimator}")]
    if name in router_names(2)[-4:]:
        return own
    return MODELS[found[0] if found else "domain means"](table, seed)


def multi_call_routers(
    table: ExpertTable,
    estimates: Estimates,
    max_calls: int,
    seed: int = 0,
    answer_model: AnswerModel | None = None,
    bars: Bars = silent,
    evidence: Tensor | None = None,
) -> dict[str, Router]:
    """The routers that ask several experts about a query, by name.

    Args:
        table: only its train split is used.
        estimates: of all rows, those of the training rows out of fold; the same for all routers.
        max_calls: M, above 1.
        seed: of folds, samples and lotteries.
        answer_model: fitted to the training rows; None: it is fitted here.
        bars: to show the progress.
        evidence: [N, K], what calls tell of their answers; None: nothing.
    """
    with bars("routers of several calls", 5) as bar:
        panels = Panels(table, estimates, max_calls, seed, evidence)
        routers: dict[str, Router] = {}
        for name, fit in (
            ("majority", lambda: Majority(panels, estimates, max_calls, seed)),
            ("cascade", lambda: Cascade(panels, Scorer(panels), estimates, max_calls, seed)),
            ("cascade routing", lambda: CascadeRouting(table, estimates, max_calls, seed, answer_model, evidence)),
            ("two-stage trees", lambda: TwoStageTrees(panels, Gains(panels), estimates, max_calls, seed)),
        ):
            bar.update()
            routers[name] = fit()
        bar.update()
    return routers
