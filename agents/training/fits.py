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
from agents.routers import ESTIMATORS, Router, one_call_routers
from agents.training.runtime import run_in_parallel
from leeroo_env import ExpertTable


def fit_all(
    table: ExpertTable, horizon: int, seeds: Sequence[int], bars: Bars = silent
) -> tuple[list[Predictor], dict[str, Router]]:
    """Predictors by each of the seeds, and `one_call_routers` by the first; estimators are fitted at the same time.

    The predictors have networks by a seed each and share the rest; the routers observe neighbours and networks of the
    first. Raises InputError where the table has only one training query.
    """
    rows, seed = training_rows(table), seeds[0]
    others = [name for name in ESTIMATORS if name not in ("kNN", "MLP")]
    with bars("estimates", 2 + len(seeds) + len(others)) as bar:

        def counted(fit: Callable[..., Any], *arguments: Any) -> Any:
            fitted = fit(*arguments)
            bar.update()
            return fitted

        def with_estimates(fit: Callable[[ExpertTable, Tensor, int], tuple[Any, Tensor]]) -> Any:
            """The estimator, its out-of-fold estimates, and those of the whole table."""
            model, out_of_fold = fit(table, rows, seed)
            return (model, out_of_fold), with_out_of_fold(table, rows, out_of_fold, model.predict)

        ridge, (neighbours, knn), (networks, mlp), *rest = run_in_parallel(
            partial(counted, fit_components, table, rows, seed),
            partial(counted, with_estimates, fit_neighbours),
            partial(counted, with_estimates, fit_networks),
            *(partial(counted, ESTIMATORS[name], table, seed) for name in others),
            *(partial(counted, fit_networks, table, rows, other) for other in seeds[1:]),
        )
    by_seed = [networks, *rest[len(others) :]]
    known = {"kNN": knn, "MLP": mlp, **dict(zip(others, rest, strict=False))}
    predictors = [predictor_of(rows, ridge, neighbours, own) for own in by_seed]
    return predictors, one_call_routers(table, horizon, seed, bars, known)
