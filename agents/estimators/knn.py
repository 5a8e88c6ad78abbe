"""Estimates by nearest neighbours: mean scores and costs on the training queries with the most similar embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, threshold

from agents.estimators.base import MAX_EXACT, Estimates, combine, first_alike, least_error, targets_of, with_out_of_fold
from agents.estimators.cells import find_cells, make_index, search
from leeroo_env.table import ExpertTable

NEIGHBOURS = (5, 10, 20, 50, 100, 200)
SHARPNESS = 10.0
CHUNK = 512
SPARE = 16  # references more that an index is asked for, in place of a query itself and its near duplicates
BELOW_1 = 1 - 2**-24  # the next number of single precision


@dataclass(frozen=True)
class Neighbours:
    """Means over the k training queries nearest by cosine, weighted by exp(10 cosine).

    Attributes:
        references: [n, D], embeddings of length 1; of more than 6,000 in half precision.
        targets: [n, 2K], scores and costs_usd there.
        sizes: [2] int64, k for scores and for costs.
        cells: [L, D], of an index of the references; None: all of them are searched.
    """

    references: Tensor
    targets: Tensor
    sizes: Tensor
    cells: Tensor | None = None

    def predict(self, embeddings: Tensor) -> Tensor:
        """[B, D] -> [B, 2K]."""
        parts = normalize(embeddings.float(), dim=1).split(_chunk(len(self.references)))
        if self.index is None:
            return torch.cat([self.of_cosines(part @ self.references.float().T) for part in parts])
        return torch.cat([self._of_index(part) for part in parts])

    @cached_property
    def index(self) -> Any:
        """The index of the references; None where all of them are searched."""
        return make_index(self.references, self.cells)

    def nearest(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """The cosine of vectors of length 1 [B, D] with the nearest reference, and its number, both [B]."""
        if self.index is not None:
            which = search(self.index, units, 1)[1][:, 0]
        else:
            parts = units.split(_chunk(len(self.references)))
            which = torch.cat([(part @ self.references.float().T).argmax(dim=1) for part in parts])
        return (units * normalize(self.references[which].float(), dim=1)).sum(dim=1), which

    def _of_index(self, units: Tensor) -> Tensor:
        sizes: list[int] = self.sizes.tolist()
        cosine, which = search(self.index, units, max(sizes))
        return combine(_weighted_means(cosine, which, self.targets, sizes), (0, 1))

    def of_cosines(self, cosine: Tensor) -> Tensor:
        """[B, 2K] from the cosines of queries with the references, [B, n]. All references that are as near as the kth
        count."""
        sizes: list[int] = self.sizes.tolist()
        means = []
        for least, targets in zip(_kth_largest(cosine, sizes), self.targets.chunk(2, dim=1), strict=True):
            weights = threshold((cosine - least).mul_(SHARPNESS).exp_(), BELOW_1, 0.0, inplace=True)
            means.append(weights @ targets / weights.sum(dim=1, keepdim=True))
        return torch.cat(means, dim=1)


def fit_neighbours(table: ExpertTable, rows: Tensor, seed: int = 0) -> tuple[Neighbours, Tensor]:
    """The estimator for the training queries `rows` [n], and their estimates [n, 2K] without themselves and their near
    duplicates. More than 6,000 are searched by an index, whose cells `seed` decides.

    k, one for scores and one for costs, is that of least leave-one-out error.
    """
    targets, alike, large = targets_of(table, rows), first_alike(table, rows), len(rows) > MAX_EXACT
    parts = [normalize(table.embeddings[part].float(), dim=1) for part in rows.split(2**14)]
    references = torch.cat([part.half() for part in parts] if large else parts)
    others = len(rows) - int(alike.bincount().max())
    sizes = [k for k in NEIGHBOURS if k <= others] or [max(others, 1)]
    found = Neighbours(references, targets.float(), alike[:0], find_cells(references, seed) if large else None)
    leave_one_out = _all_means(found, alike, sizes)
    best = least_error(leave_one_out, targets)
    chosen = torch.tensor([sizes[i] for i in best], device=table.device)
    return replace(found, sizes=chosen), combine(leave_one_out, best)


def knn_estimates(table: ExpertTable, seed: int = 0) -> Estimates:
    """Estimates from the nearest training queries, never from the query itself."""
    rows = table.rows("train")
    neighbours, leave_one_out = fit_neighbours(table, rows, seed)
    return with_out_of_fold(table, rows, leave_one_out, neighbours.predict)


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


def _all_means(found: Neighbours, alike: Tensor, sizes: list[int]) -> list[Tensor]:
    """The means for each k of `sizes`, each [n, 2K], of every reference without those that `alike` [n] says are nearly
    the same."""
    chunk, parts = _chunk(len(alike)), []
    for references, own in zip(found.references.split(chunk), alike.split(chunk), strict=True):
        cosine, which = _others(found, normalize(references.float(), dim=1), own, alike, max(sizes))
        parts.append(_weighted_means(cosine, which, found.targets, sizes))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def _others(found: Neighbours, queries: Tensor, own: Tensor, alike: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines of queries [B, D] with the k nearest references that are not nearly the same; their numbers, [B, k]."""
    if found.index is None:
        cosine = queries @ found.references.float().T
        return cosine.masked_fill_(own[:, None] == alike, -2.0).topk(k, dim=1)
    cosine, which = search(found.index, queries, k + SPARE)
    cosine, order = cosine.masked_fill_(own[:, None] == alike[which], -2.0).topk(k, dim=1)
    return cosine, which.gather(1, order)


def _weighted_means(cosine: Tensor, which: Tensor, targets: Tensor, sizes: list[int]) -> list[Tensor]:
    """Weighted means of the targets [n, 2K] of the first k of the references `which` [B, max k], for each k."""
    weights = (SHARPNESS * (cosine - cosine[:, :1])).exp()
    means: dict[int, Tensor] = {}
    total, start = torch.zeros(len(cosine), targets.shape[1], device=targets.device), 0
    for k in sorted(set(sizes)):
        part = slice(start, k)
        total = total + torch.einsum("bk,bkt->bt", weights[:, part], targets[which[:, part]])
        means[k] = total / weights[:, :k].sum(dim=1, keepdim=True)
        start = k
    return [means[k] for k in sizes]


def _chunk(n: int) -> int:
    """Queries at a time, so that their cosines with n references take little memory."""
    return CHUNK if n <= MAX_EXACT else max(16, CHUNK * MAX_EXACT // n)
