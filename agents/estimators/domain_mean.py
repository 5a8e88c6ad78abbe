"""Estimates by domain: each expert's mean score and cost on training queries of the query's (true) domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agents.estimators.base import Estimates, combine, least_error, targets_of
from leeroo_env.table import ExpertTable

PRIOR_QUERIES = (0.01, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e9)


@dataclass(frozen=True)
class DomainMeans:
    """Means over the training queries of a domain.

    Attributes:
        domains: names, [G].
        means: [G + 1, 2K], scores and costs of each, and last those of any other domain.
    """

    domains: tuple[str, ...]
    means: Tensor

    def predict(self, domains: Sequence[str]) -> Tensor:
        """The means [B, 2K] of the domains of B queries."""
        place = {name: i for i, name in enumerate(self.domains)}
        return self.means[torch.tensor([place.get(name, len(place)) for name in domains], device=self.means.device)]


def fit_domain_means(table: ExpertTable) -> tuple[DomainMeans, Tensor]:
    """The means, and estimates of the training queries [n, 2K], each without the query itself.

    Means shrink to the overall one, as if every domain had a number of prior queries with that mean. The number,
    one for scores and one for costs, is that of least leave-one-out error.
    """
    rows = table.rows("train")
    names, domain = _domain_numbers(table)
    targets, own = targets_of(table, rows), domain[rows]
    sums = targets.new_zeros(len(names), targets.shape[1]).index_add_(0, own, targets)
    counts = torch.bincount(own, minlength=len(sums)).double()[:, None]
    overall = targets.mean(dim=0)
    others = (targets.sum(dim=0) - targets) / max(len(rows) - 1, 1)
    leave_one_out = [_shrunk(sums[own] - targets, counts[own] - 1, others, prior) for prior in PRIOR_QUERIES]
    means = [_shrunk(sums, counts, overall, prior) for prior in PRIOR_QUERIES]
    best = least_error(leave_one_out, targets)
    chosen = torch.cat([combine(means, best), overall[None]])
    return DomainMeans(tuple(names), chosen.float()), combine(leave_one_out, best).float()


def domain_mean_estimates(table: ExpertTable, seed: int = 0) -> Estimates:
    """Estimates by `fit_domain_means`. `seed` is not used."""
    model, leave_one_out = fit_domain_means(table)
    estimates = model.means[_domain_numbers(table)[1]]
    estimates[table.rows("train")] = leave_one_out
    return Estimates.from_joint(estimates)


def _shrunk(sums: Tensor, counts: Tensor, overall: Tensor, prior: float) -> Tensor:
    return (sums + prior * overall) / (counts + prior)


def _domain_numbers(table: ExpertTable) -> tuple[list[str], Tensor]:
    """The names of the domains, and their number for each query, [N] int64."""
    names, numbers = np.unique(table.queries["domain"].to_numpy(), return_inverse=True)
    return names.tolist(), torch.from_numpy(numbers.ravel()).to(table.device)
