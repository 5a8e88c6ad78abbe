"""Kernel ridge regression: what leaving queries out of a whole kernel matrix gives, and fits on centres.

With more training queries than one matrix can hold, the weights w of m centres solve (C' C + ridge G) w = C' y, where
C [n, m] is the kernel of the training queries with the centres and G [m, m] that of the centres: the Nystrom
approximation (Rudi, Camoriano and Rosasco, Less is more, 2015), which is exact where all queries are centres. C is made
a block of rows at a time, and only C' C is kept, for each fold, so that time and memory are linear in queries, and
out-of-fold estimates need none of these products again. Shapes: n training queries, m centres, T targets, F folds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CENTRES = 4_096
FOLDS = 5
BLOCK = 2_048  # rows of C at a time
JITTER = 1e-3  # added to the diagonal of G, which is 1 or a little more: single precision leaves errors in C' C


def errors_left_out(inverse: Tensor, alpha: Tensor, alike: Tensor) -> Tensor:
    """Errors of the training queries when each is left out with its near duplicates, [n, T].

    They follow from the fit: alpha_i / inverse_ii for one query (Rasmussen and Williams, 2006, section 5.4.2), and
    likewise with the block of the inverse for several.

    Args:
        inverse: of the kernel matrix plus the ridge, [n, n].
        alpha: the weights, [n, T].
        alike: [n] int64, as of `first_alike`.
    """
    error = alpha / inverse.diagonal()[:, None]
    own = torch.arange(len(alike), device=alike.device)
    for first in alike[alike != own].unique():
        group = (alike == first).nonzero().squeeze(1)
        error[group] = torch.linalg.solve(inverse[group][:, group].to(alpha.dtype), alpha[group])
    return error


def draw_centres(alike: Tensor, seed: int) -> Tensor:
    """Places of the centres among n queries, drawn at random; of near duplicates, by `alike` [n], only the first."""
    places = (alike == torch.arange(len(alike), device=alike.device)).nonzero().squeeze(1)
    drawn = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:CENTRES].sort().values
    return places[drawn.to(places.device)]


def ridge_on_centres(
    kernel: Callable[[Tensor], Tensor], gram: Tensor, targets: Tensor, fold: Tensor, ridges: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Weights [m, T] and out-of-fold estimates [n, T] of each target, at the ridge of least error on the first fold;
    both are 0, the mean, where none has less than that.

    Args:
        kernel: of the queries of these places [b] among the n with the centres, [b, m] float32.
        gram: G [m, m].
        targets: [n, T] float64, with mean 0.
        fold: [n] int64, 0 to F - 1.
        ridges: to choose from.
    """
    parts = [(fold == f).nonzero().squeeze(1) for f in range(int(fold.max()) + 1)]
    squares = torch.zeros(len(parts), *gram.shape, dtype=torch.float64, device=gram.device)
    moments = targets.new_zeros(len(parts), len(gram), targets.shape[1])
    for f, part in enumerate(parts):
        for rows in part.split(BLOCK):
            block = kernel(rows)
            squares[f] += block.T @ block
            moments[f] += block.T @ targets[rows].float()
    square, moment, penalty = squares.sum(dim=0), moments.sum(dim=0), gram.double()
    penalty.diagonal().add_(JITTER)

    def solve(without: int | None, ridge: float, columns: Tensor) -> Tensor:
        left, right = (square, moment) if without is None else (square - squares[without], moment - moments[without])
        return torch.cholesky_solve(right[:, columns], _cholesky(left.add(penalty, alpha=ridge)))

    everything = torch.ones(targets.shape[1], dtype=torch.bool, device=gram.device)
    tried = [_times(kernel, parts[0], solve(0, ridge, everything)) for ridge in ridges]
    errors = torch.stack([(estimates - targets[parts[0]]).square().sum(dim=0) for estimates in tried])
    least, best = errors.min(dim=0)
    best[least >= targets[parts[0]].square().sum(dim=0)] = -1

    def fitted(without: int | None) -> Tensor:
        weights = torch.zeros_like(moment)
        for i in best[best >= 0].unique().tolist():
            weights[:, best == i] = solve(without, ridges[i], best == i)
        return weights

    out_of_fold = torch.empty_like(targets)
    for f, part in enumerate(parts):
        out_of_fold[part] = _times(kernel, part, fitted(f))
    return fitted(None), out_of_fold


def _cholesky(matrix: Tensor) -> Tensor:
    """The factor of a matrix [m, m], with more on its diagonal where rounding has made it indefinite."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    shift = 1e-8 * float(matrix.diagonal().mean())
    while bool(failed):
        shift *= 10
        factor, failed = torch.linalg.cholesky_ex(matrix + shift * torch.eye(len(matrix), device=matrix.device))
    return factor


def _times(kernel: Callable[[Tensor], Tensor], rows: Tensor, weights: Tensor) -> Tensor:
    """The estimates [b, T] of rows [b] from weights [m, T]."""
    return torch.cat([kernel(part) @ weights.float() for part in rows.split(BLOCK)]).double()
