"""Estimates by domain: each expert's mean score and cost on training queries of the query's (true) domain."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.estimators.base import Estimates, combine, least_error, targets_of
from leeroo_env.table import ExpertTable

PRIOR_QUERIES = (0.01, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e9)


def domain_mean_estimates(table: ExpertTable, seed: int = 0) -> Estimates:
    """Means over the training queries of the domain, the query itself left out.

    They shrink to the overall mean, as if every domain had a number of prior queries with that mean. The number,
    one for scores and one for costs, is that of least leave-one-out error. `seed` is not used.
    """
    rows, domain = table.rows("train"), _domain_numbers(table)
    targets, own = targets_of(table, rows), domain[rows]
    sums = targets.new_zeros(int(domain.max()) + 1, targets.shape[1]).index_add_(0, own, targets)
    counts = torch.bincount(own, minlength=len(sums)).double()[:, None]
    overall = targets.mean(dim=0)
    others = (targets.sum(dim=0) - targets) / max(len(rows) - 1, 1)
    leave_one_out = [_shrunk(sums[own] - targets, counts[own] - 1, others, prior) for prior in PRIOR_QUERIES]
    means = [_shrunk(sums, counts, overall, prior) for prior in PRIOR_QUERIES]
    best = least_error(leave_one_out, targets)
    estimates = combine(means, best)[domain]
    estimates[rows] = combine(leave_one_out, best)
    return Estimates.from_joint(estimates.float())


def _shrunk(sums: Tensor, counts: Tensor, overall: Tensor, prior: float) -> Tensor:
    return (sums + prior * overall) / (counts + prior)


def _domain_numbers(table: ExpertTable) -> Tensor:
    """[N] int64, the same for queries of the same domain."""
    _, numbers = np.unique(table.queries["domain"].to_numpy(), return_inverse=True)
    return torch.from_numpy(numbers.ravel()).to(table.device)
