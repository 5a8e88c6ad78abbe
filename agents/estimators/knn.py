"""Estimates by nearest neighbours: mean scores and costs on the training queries with the most similar embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, threshold

from agents.estimators.base import MAX_TRAINING_QUERIES, Estimates, combine, least_error, sample_rows, targets_of
from leeroo_env.table import ExpertTable

NEIGHBOURS = (5, 10, 20, 50, 100, 200)
SHARPNESS = 10.0
CHUNK = 512
BELOW_1 = 1 - 2**-24  # the next number of single precision


@dataclass(frozen=True)
class Neighbours:
    """Means over the k training queries nearest by cosine, weighted by exp(10 cosine).

    Attributes:
        references: [n, D], embeddings of length 1.
        targets: [n, 2K], scores and costs_usd there.
        sizes: [2] int64, k for scores and for costs.
    """

    references: Tensor
    targets: Tensor
    sizes: Tensor

    def predict(self, embeddings: Tensor) -> Tensor:
        """[B, D] -> [B, 2K]."""
        units = normalize(embeddings.float(), dim=1)
        return torch.cat([self.of_cosines(part @ self.references.T) for part in units.split(CHUNK)])

    def of_cosines(self, cosine: Tensor) -> Tensor:
        """[B, 2K] from the cosines of queries with the references, [B, n]. All references that are as near as the kth
        count."""
        sizes: list[int] = self.sizes.tolist()
        means = []
        for least, targets in zip(_kth_largest(cosine, sizes), self.targets.chunk(2, dim=1), strict=True):
            weights = threshold((cosine - least).mul_(SHARPNESS).exp_(), BELOW_1, 0.0, inplace=True)
            means.append(weights @ targets / weights.sum(dim=1, keepdim=True))
        return torch.cat(means, dim=1)


def fit_neighbours(table: ExpertTable, rows: Tensor) -> tuple[Neighbours, Tensor]:
    """The estimator for the training queries `rows` [n], and their leave-one-out estimates [n, 2K].

    k, one for scores and one for costs, is that of least leave-one-out error.
    """
    references, targets = normalize(table.embeddings[rows].float(), dim=1), targets_of(table, rows)
    sizes = [k for k in NEIGHBOURS if k < len(rows)] or [max(len(rows) - 1, 1)]
    own = torch.arange(len(rows), device=table.device)
    leave_one_out = _all_means(references, targets.float(), references, own, sizes)
    best = least_error(leave_one_out, targets)
    chosen = torch.tensor([sizes[i] for i in best], device=table.device)
    return Neighbours(references, targets.float(), chosen), combine(leave_one_out, best)


def knn_estimates(table: ExpertTable, seed: int = 0) -> Estimates:
    """Estimates from the nearest of at most 6,000 training queries, never from the query itself."""
    rows = sample_rows(table.rows("train"), MAX_TRAINING_QUERIES, seed)
    neighbours, leave_one_out = fit_neighbours(table, rows)
    estimates = neighbours.predict(table.embeddings)
    estimates[rows] = leave_one_out
    return Estimates.from_joint(estimates)


def _kth_largest(x: Tensor, sizes: list[int]) -> list[Tensor]:
    """The kth largest number of every row of `x` [B, n] for each k of `sizes`, [B, 1] each."""
    if x.device.type != "cpu":
        largest = x.topk(max(sizes), dim=1).values
        return [largest[:, k - 1 : k] for k in sizes]
    found, top = {}, x.numpy()
    for k in sorted(set(sizes), reverse=True):  # ten times as fast as torch's topk
        top = np.partition(top, top.shape[1] - k, axis=1)[:, top.shape[1] - k :]
        found[k] = torch.from_numpy(top[:, :1])
    return [found[k] for k in sizes]


def _all_means(references: Tensor, targets: Tensor, embeddings: Tensor, own: Tensor, sizes: list[int]) -> list[Tensor]:
    """The means for each k of `sizes`; `own` [B] is the reference that is the query itself, -1 for none."""
    parts = [
        _means(normalize(part.float(), dim=1), references, targets, itself, sizes)
        for part, itself in zip(embeddings.split(CHUNK), own.split(CHUNK), strict=True)
    ]
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def _means(queries: Tensor, references: Tensor, targets: Tensor, own: Tensor, sizes: list[int]) -> list[Tensor]:
    """Weighted means of the targets [n, 2K] of the k nearest references [n, D] to queries [B, D], for each k."""
    cosine = queries @ references.T
    itself = own[:, None] == torch.arange(len(references), device=own.device)
    cosine, which = cosine.masked_fill_(itself, -2.0).topk(max(sizes), dim=1)
    weights = (SHARPNESS * (cosine - cosine[:, :1])).exp()
    means: dict[int, Tensor] = {}
    total, start = torch.zeros(len(queries), targets.shape[1], device=targets.device), 0
    for k in sorted(set(sizes)):
        part = slice(start, k)
        total = total + torch.einsum("bk,bkt->bt", weights[:, part], targets[which[:, part]])
        means[k] = total / weights[:, :k].sum(dim=1, keepdim=True)
        start = k
    return [means[k] for k in sizes]
