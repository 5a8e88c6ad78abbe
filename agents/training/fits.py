"""Fits what a run needs before it trains: the agent's estimates, and the routers that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from agents.estimators.base import with_out_of_fold
from agents.estimators.ensemble import Predictor, predictor_of, training_rows
from agents.estimators.knn import fit_neighbours
from agents.estimators.mlp import fit_networks
from agents.estimators.ridge_pca import fit_components
from agents.progress import Bars, silent
from agents.routers import ESTIMATORS, Router
from agents.routers.registry import blind_routers, estimating_routers
from agents.training.runtime import run_in_parallel
from leeroo_env import ExpertTable

SLOW = ("MLP", "kernel ridge")  # estimators that are fitted first, so that all are done soonest


def fit_all(
    table: ExpertTable, horizon: int, seeds: Sequence[int], bars: Bars = silent
) -> tuple[list[Predictor], dict[str, Router]]:
    """Predictors by each of the seeds, and `one_call_routers` by the first; all are fitted at the same time.

    The predictors have networks by a seed each and share the rest; the routers observe neighbours and networks of the
    first. Raises InputError where the table has only one training query.
    """
    rows, seed = training_rows(table), seeds[0]
    shared: dict[str, Callable[..., tuple[Any, Tensor]]] = {"kNN": fit_neighbours, "MLP": fit_networks}

    def routers_by(name: str) -> tuple[dict[str, Router], Any]:
        if name not in shared:
            return estimating_routers(name, table, ESTIMATORS[name](table, seed), horizon, seed), None
        model, out_of_fold = shared[name](table, rows, seed)
        estimates = with_out_of_fold(table, rows, out_of_fold, model.predict)
        return estimating_routers(name, table, estimates, horizon, seed), (model, out_of_fold)

    order = sorted(ESTIMATORS, key=lambda name: name not in SLOW)
    work: list[Callable[[], Any]] = [partial(fit_components, table, rows, seed)]
    work += [partial(routers_by, name) for name in order]
    work += [partial(fit_networks, table, rows, other) for other in seeds[1:]]
    with bars("estimates and routers", len(work)) as bar:

        def counted(piece: Callable[[], Any]) -> Any:
            result = piece()
            bar.update()
            return result

        ridge, *results = run_in_parallel(*(partial(counted, piece) for piece in work))
    by_estimator = dict(zip(order, results, strict=False))
    routers = blind_routers(table, seed)
    for name in ESTIMATORS:
        routers |= by_estimator[name][0]
    neighbours, networks = (by_estimator[name][1] for name in shared)
    by_seed = [networks, *results[len(order) :]]
    return [predictor_of(rows, ridge, neighbours, own) for own in by_seed], routers
