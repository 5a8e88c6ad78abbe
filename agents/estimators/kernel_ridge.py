"""Estimates by kernel ridge regression on embeddings, with a Gaussian kernel on the unit sphere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from agents.estimators.base import MAX_TRAINING_QUERIES, Estimates, mean_and_scale, sample_rows, targets_of
from leeroo_env.table import ExpertTable

GAMMA = 2.0
RIDGE = 10.0
CHUNK = 4_096


@dataclass(frozen=True)
class KernelRidge:
    """Kernel ridge regression of all experts' scores and costs.

    Attributes:
        centres: [n, D], embeddings of length 1.
        weights: [n, 2K], of the centres.
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


def fit_kernel_ridge(table: ExpertTable, rows: Tensor) -> tuple[KernelRidge, Tensor]:
    """The estimator for the training queries `rows` [n], and their leave-one-out estimates [n, 2K].

    These follow from one fit: y_i - alpha_i / (K + ridge)^-1_ii (Rasmussen and Williams, 2006, section 5.4.2).
    """
    targets = targets_of(table, rows)
    mean, scale = mean_and_scale(targets)
    centres = normalize(table.embeddings[rows].float(), dim=1)
    gram = _kernel(centres, centres)
    gram.diagonal().add_(RIDGE)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    standard = ((targets - mean) / scale).float()
    weights = inverse @ standard
    model = KernelRidge(centres, weights, mean, scale.nan_to_num(posinf=0.0))
    return model, model.of_standard(standard - weights / inverse.diagonal()[:, None])


def kernel_ridge_estimates(table: ExpertTable, seed: int = 0) -> Estimates:
    """Estimates of kernel ridge regressions on embeddings, at most 6,000 training queries being centres."""
    rows = sample_rows(table.rows("train"), MAX_TRAINING_QUERIES, seed)
    model, leave_one_out = fit_kernel_ridge(table, rows)
    estimates = model.predict(table.embeddings)
    estimates[rows] = leave_one_out
    return Estimates.from_joint(estimates)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """exp(-gamma |x - y|^2) for vectors of length 1, [B, n]."""
    return (x @ y.T).sub_(1.0).mul_(2 * GAMMA).exp_()
