"""All routers that the agent is compared with, by the names that reports show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

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
MULTI_CALL = ("majority", "cascade", "cascade routing", "two-stage trees")


def one_call_routers(table: ExpertTable, horizon: int, seed: int = 0, bars: Bars = silent) -> dict[str, Router]:
    """The routers that ask one expert about a query, which every report shows beside the agent, by name.

    Args:
        table: only its train and val splits are used.
        horizon: queries in an episode, for which fixed prices are tuned.
        seed: of lotteries and estimates.
        bars: to show the progress.
    """
    routers = blind_routers(table, seed)
    with bars("routers", len(ESTIMATORS)) as bar:
        for name, estimator in ESTIMATORS.items():
            routers |= estimating_routers(name, table, estimator(table, seed), horizon, seed)
            bar.update()
    return routers


def blind_routers(table: ExpertTable, seed: int) -> dict[str, Router]:
    """Those that do not observe the query."""
    return {
        "random": Random(table, seed),
        "cheapest": Cheapest(table),
        "best single": BestSingle(table),
        "best mixture": FixedMixture(table, seed),
    }


def estimating_routers(
    name: str, table: ExpertTable, estimates: Estimates, horizon: int, seed: int
) -> dict[str, Router]:
    """Those that observe the estimates that the estimator of this name makes of a query."""
    routers: dict[str, Router] = {
        f"paced {name}": PacedPrice(table, estimates),
        f"fixed price {name}": FixedPrice(table, estimates, horizon),
        f"planned {name}": Planned(table, estimates, seed),
    }
    return routers | ({f"two-step {name}": TwoStep(table, estimates)} if name == "kernel ridge" else {})


def router_names(max_calls: int = 1) -> list[str]:
    """The names of all routers of a report with so many calls a query."""
    kinds = [f"{kind} {name}" for name in ESTIMATORS for kind in ("paced", "fixed price", "planned")]
    several = MULTI_CALL if max_calls > 1 else ()
    return ["random", "cheapest", "best single", "best mixture", *kinds, "two-step kernel ridge", *several]


def fit_estimator(name: str, table: ExpertTable, seed: int, own: Predicts) -> Predicts:
    """The estimator that the router of this name observes queries by; `own`, the agent's, if it asks several experts.
    Routers that ignore the query have the least one."""
    found = [estimator for estimator in MODELS if name.endswith(f" {estimator}")]
    if name in MULTI_CALL:
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
    names: Sequence[str] = MULTI_CALL,
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
        names: of those to make.
    """
    panels = cache(lambda: Panels(table, estimates, max_calls, seed, evidence))
    fits: dict[str, Callable[[], Router]] = {
        "majority": lambda: Majority(panels(), estimates, max_calls, seed),
        "cascade": lambda: Cascade(panels(), Scorer(panels()), estimates, max_calls, seed),
        "cascade routing": lambda: CascadeRouting(table, estimates, max_calls, seed, answer_model, evidence),
        "two-stage trees": lambda: TwoStageTrees(panels(), Gains(panels()), estimates, max_calls, seed),
    }
    routers: dict[str, Router] = {}
    with bars("routers of several calls", len(names)) as bar:
        for name in names:
            routers[name] = fits[name]()
            bar.update()
    return routers
