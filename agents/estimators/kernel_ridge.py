"""Estimates by kernel ridge regression on embeddings, with a Gaussian kernel on the unit sphere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from agents.estimators.base import (
    CHUNK,
    MAX_EXACT,
    Estimates,
    draw_folds,
    first_alike,
    mean_and_scale,
    targets_of,
    with_out_of_fold,
)
from agents.estimators.ridge import FOLDS, draw_centres, errors_left_out, ridge_on_centres
from leeroo_env.table import ExpertTable

GAMMA = 2.0
RIDGE = 10.0


@dataclass(frozen=True)
class KernelRidge:
    """Kernel ridge regression of all experts' scores and costs.

    Attributes:
        centres: [m, D], embeddings of length 1 of the training queries, or of some.
        weights: [m, 2K], of the centres.
        mean: [2K] float64, of scores and costs.
        scale: [2K] float64, their standard deviations; 0 for constants.
    """

    centres: Tensor
    weights: Tensor
    mean: Tensor
    scale: Tensor

    def predict(self, embeddings: Tensor) -> Tensor:
        """[B, D] -> [B, 2K]."""
        parts = [_kernel(normalize(x.float(), dim=1), self.centres) @ self.weights for x in embeddings.split(CHUNK)]
        return self.of_standard(torch.cat(parts))

    def of_standard(self, standard: Tensor) -> Tensor:
        """Scores and costs_usd from standardised ones, [B, 2K]."""
        return (self.mean + standard.double() * self.scale).float()


def fit_kernel_ridge(table: ExpertTable, rows: Tensor, seed: int = 0) -> tuple[KernelRidge, Tensor]:
    """The estimator for the training queries `rows` [n], and their estimates [n, 2K] without themselves and their near
    duplicates, as in `agents.estimators.ridge_pca.fit_components`; `seed` is of centres and folds."""
    targets, alike = targets_of(table, rows), first_alike(table, rows)
    mean, scale = mean_and_scale(targets)
    if len(rows) > MAX_EXACT:
        return _fit_on_centres(table, rows, alike, (targets - mean) / scale, mean, scale, seed)
    centres = normalize(table.embeddings[rows].float(), dim=1)
    gram = _kernel(centres, centres)
    gram.diagonal().add_(RIDGE)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    standard = ((targets - mean) / scale).float()
    weights = inverse @ standard
    model = KernelRidge(centres, weights, mean, scale.nan_to_num(posinf=0.0))
    return model, model.of_standard(standard - errors_left_out(inverse, weights, alike))


def _fit_on_centres(
    table: ExpertTable, rows: Tensor, alike: Tensor, standard: Tensor, mean: Tensor, scale: Tensor, seed: int
) -> tuple[KernelRidge, Tensor]:
    centres = normalize(table.embeddings[rows[draw_centres(alike, seed)]].float(), dim=1)

    def kernel(places: Tensor) -> Tensor:
        return _kernel(normalize(table.embeddings[rows[places]].float(), dim=1), centres)

    fold = draw_folds(alike, FOLDS, torch.Generator(table.device).manual_seed(seed))
    weights, out_of_fold = ridge_on_centres(kernel, _kernel(centres, centres), standard, fold, (RIDGE,))
    model = KernelRidge(centres, weights.float(), mean, scale.nan_to_num(posinf=0.0))
    return model, model.of_standard(out_of_fold)


def kernel_ridge_estimates(table: ExpertTable, seed: int = 0) -> Estimates:
    """Estimates of kernel ridge regressions on embeddings, those of training queries out of fold."""
    rows = table.rows("train")
    model, out_of_fold = fit_kernel_ridge(table, rows, seed)
    return with_out_of_fold(table, rows, out_of_fold, model.predict)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """exp(-gamma |x - y|^2) for vectors of length 1, [B, n]."""
    return (x @ y.T).sub_(1.0).mul_(2 * GAMMA).exp_()
