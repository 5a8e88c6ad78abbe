"""Each expert's mean score and cost on queries of the same domain, the query's true domain being known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.estimators.base import Estimates, best_of, take, targets_of
from leeroo_env.table import ExpertTable

PRIOR_QUERIES = (0.01, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e9)


def domain_mean_estimates(table: ExpertTable, seed: int = 0) -> Estimates:
    """Means over the training queries of the domain, the query itself left out.

    They shrink to the overall mean, as if it had been seen for a number of prior queries in every domain. This number,
    one for scores and one for costs, is the one with the least leave-one-out error. `seed` is not used.
    """
    rows, domain = table.rows("train"), _domain_numbers(table)
    targets, own = targets_of(table, rows), domain[rows]
    sums = targets.new_zeros(int(domain.max()) + 1, targets.shape[1]).index_add_(0, own, targets)
    counts = torch.bincount(own, minlength=len(sums)).double()[:, None]
    overall = targets.mean(dim=0)
    others = (targets.sum(dim=0) - targets) / max(len(rows) - 1, 1)
    left_out = [_shrunk(sums[own] - targets, counts[own] - 1, others, prior) for prior in PRIOR_QUERIES]
    means = [_shrunk(sums, counts, overall, prior) for prior in PRIOR_QUERIES]
    best = best_of(left_out, targets)
    estimates = take(means, best)[domain]
    estimates[rows] = take(left_out, best)
    return Estimates.from_joint(estimates.float())


def _shrunk(sums: Tensor, counts: Tensor, overall: Tensor, prior: float) -> Tensor:
    return (sums + prior * overall) / (counts + prior)


def _domain_numbers(table: ExpertTable) -> Tensor:
    """[N] int64, the same for queries of the same domain."""
    _, numbers = np.unique(table.queries["domain"].to_numpy(), return_inverse=True)
    return torch.from_numpy(numbers.ravel()).to(table.device)
