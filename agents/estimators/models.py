"""Estimators fitted to a table, which estimate queries that are not in it: what a router needs to be deployed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import pyarrow as pa
from torch import Tensor

from agents.estimators.base import Estimates
from agents.estimators.domain_mean import DomainMeans, fit_domain_means
from agents.estimators.kernel_ridge import KernelRidge, fit_kernel_ridge
from agents.estimators.knn import Neighbours, fit_neighbours
from agents.estimators.linucb import LinUCB, fit_linucb
from agents.estimators.mlp import Networks, fit_networks
from leeroo_env.table import ExpertTable

Texts: TypeAlias = Sequence[str] | pa.ChunkedArray


class Predicts(Protocol):
    """Estimates queries [B, D] from their embeddings, texts and domains, where it uses these."""

    def predict(
        self, embeddings: Tensor, texts: Texts | None = None, domains: Sequence[str] | None = None
    ) -> Estimates: ...


@dataclass(frozen=True)
class Model:
    """One of the estimators of routers, as `Predicts`.

    Attributes:
        part: the estimator.
    """

    part: KernelRidge | Neighbours | Networks | LinUCB | DomainMeans

    def predict(
        self, embeddings: Tensor, texts: Texts | None = None, domains: Sequence[str] | None = None
    ) -> Estimates:
        """Estimates for queries [B, D]; texts are not used, and unknown domains are estimated by the overall mean."""
        if isinstance(self.part, DomainMeans):
            return Estimates.from_joint(self.part.predict(domains or [""] * len(embeddings)))
        return Estimates.from_joint(self.part.predict(embeddings))


# By the names in `agents.routers.registry.ESTIMATORS`, of whose estimates these are the models.
MODELS: dict[str, Callable[[ExpertTable, int], Model]] = {
    "domain means": lambda table, seed: Model(fit_domain_means(table)[0]),
    "kNN": lambda table, seed: Model(fit_neighbours(table, table.rows("train"), seed)[0]),
    "kernel ridge": lambda table, seed: Model(fit_kernel_ridge(table, table.rows("train"), seed)[0]),
    "MLP": lambda table, seed: Model(fit_networks(table, table.rows("train"), seed)[0]),
    "LinUCB": lambda table, seed: Model(fit_linucb(table, seed)[0]),
}
