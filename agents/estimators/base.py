"""Estimates of scores and costs, and what the estimators share: targets, samples, and choice by leave-one-out error.

N queries, n of them for training, K experts. Inside an estimator scores and costs are one tensor [n, 2K].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leeroo_env.table import ExpertTable

MAX_EXACT = 6_000  # training queries up to which kernel matrices are whole; with more, estimators are approximate
MAX_PANEL_QUERIES = 6_000  # that the routers of several calls are fitted to; of more a part is used
CHUNK = 4_096  # queries estimated at a time
MAX_CONSIDERED = 32  # experts for a query; of a larger pool those of the highest estimated net value


@dataclass(frozen=True)
class Estimates:
    """Estimates of what K experts score and cost on N queries; `estimates[rows]` are those of some of the queries.

    Attributes:
        score: [N, K], hardly outside [0, 1]; `reliability` never is.
        cost_usd: [N, K], not negative.
    """

    score: Tensor
    cost_usd: Tensor

    @classmethod
    def from_joint(cls, joint: Tensor) -> Estimates:
        """From scores and costs_usd side by side, [N, 2K]; negative costs become 0."""
        score, cost_usd = joint.chunk(2, dim=1)
        return cls(score, cost_usd.clamp(min=0))

    @classmethod
    def concatenate(cls, parts: Sequence[Estimates]) -> Estimates:
        """The estimates of the queries of all parts, in order."""
        return cls(torch.cat([part.score for part in parts]), torch.cat([part.cost_usd for part in parts]))

    def joint(self) -> Tensor:
        """Scores and costs_usd side by side, [N, 2K]."""
        return torch.cat([self.score, self.cost_usd], dim=1)

    def reliability(self) -> Tensor:
        """[N, K] in [0, 1], the estimated probability that each expert is right."""
        return self.score.clamp(0, 1)

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, rows: Tensor | slice) -> Estimates:
        return Estimates(self.score[rows], self.cost_usd[rows])

    @property
    def device(self) -> torch.device:
        return self.score.device


def targets_of(table: ExpertTable, rows: Tensor) -> Tensor:
    """Scores and costs_usd of `rows` [n] side by side; [n, 2K] float64."""
    return torch.cat([table.scores[rows], table.costs_usd[rows]], dim=1).double()


def mean_and_scale(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [2K] of targets [n, 2K]; the latter is infinite for constants.

    Dollars and scores differ by orders of magnitude; standardised they do not, and constants become 0.
    """
    mean, scale = targets.mean(dim=0), targets.std(dim=0, correction=0)
    return mean, scale.where(scale > 1e-6 * mean.abs(), torch.inf)


def sample_rows(rows: Tensor, n: int, seed: int) -> Tensor:
    """`rows` [m], or n of them drawn at random where there are more, ascending."""
    if len(rows) <= n:
        return rows
    kept = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n].sort().values
    return rows[kept.to(rows.device)]


def first_alike(table: ExpertTable, rows: Tensor) -> Tensor:
    """For each of `rows` [n] the place among them of the first that is nearly the same query; [n] int64."""
    _, group = table.first_alike[rows].unique(return_inverse=True)
    places = torch.arange(len(rows), device=rows.device)
    first = places.new_full((len(rows),), len(rows)).scatter_reduce(0, group, places, "amin")
    return first[group]


def draw_folds(alike: Tensor, n_folds: int, generator: torch.Generator) -> Tensor:
    """Folds of equal size drawn for n queries, [n] int64; near duplicates, by `first_alike` [n], are in one."""
    fold = torch.randperm(len(alike), generator=generator, device=generator.device) % n_folds
    together = fold[alike.to(fold.device)]
    return together if len(together.unique()) == len(fold.unique()) else fold


def with_out_of_fold(
    table: ExpertTable, rows: Tensor, out_of_fold: Tensor, predict: Callable[[Tensor], Tensor]
) -> Estimates:
    """Estimates of all N queries: those `out_of_fold` [n, 2K] of `rows` [n], and of the others what `predict` makes of
    embeddings [B, D]."""
    if len(rows) <= MAX_EXACT:
        estimates = predict(table.embeddings)
    else:
        others = torch.ones(len(table), dtype=torch.bool, device=rows.device)
        others[rows] = False
        estimates = out_of_fold.new_empty(len(table), out_of_fold.shape[1])
        for part in others.nonzero().squeeze(1).split(CHUNK):
            estimates[part] = predict(table.embeddings[part])
    estimates[rows] = out_of_fold
    return Estimates.from_joint(estimates)


def least_error(leave_one_out: Sequence[Tensor], targets: Tensor) -> tuple[int, int]:
    """Places of the leave-one-out estimates, each [n, 2K], with the least squared error of scores and of costs.

    Errors are in units of the targets' standard deviations.
    """
    _, scale = mean_and_scale(targets)
    errors = torch.stack([((estimates - targets) / scale).square().mean(dim=0) for estimates in leave_one_out])
    score, cost = errors.unflatten(1, (2, -1)).mean(dim=2).argmin(dim=0).tolist()
    return score, cost


def combine(estimates: Sequence[Tensor], best: tuple[int, int]) -> Tensor:
    """Scores of one of several estimates, each [..., 2K], with costs of another: the two places of `least_error`."""
    k = estimates[0].shape[-1] // 2
    return torch.cat([estimates[best[0]][..., :k], estimates[best[1]][..., k:]], dim=-1)
