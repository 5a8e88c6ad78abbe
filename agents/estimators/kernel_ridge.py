"""Estimates by kernel ridge regression on embeddings, with a Gaussian kernel on the unit sphere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from agents.estimators.base import MAX_TRAINING_QUERIES, Estimates, mean_and_scale, sample_rows, targets_of
from leeroo_env.table import ExpertTable

GAMMA = 2.0
RIDGE = 10.0
CHUNK = 4_096


def kernel_ridge_estimates(table: ExpertTable, seed: int = 0) -> Estimates:
    """Estimates of kernel ridge regressions on embeddings, at most 6,000 training queries being centres.

    The centres' own are leave-one-out estimates, which for ridge regression follow from one fit:
    y_i - alpha_i / (K + ridge)^-1_ii (Rasmussen and Williams, 2006, section 5.4.2).
    """
    rows = sample_rows(table.rows("train"), MAX_TRAINING_QUERIES, seed)
    targets = targets_of(table, rows)
    mean, scale = mean_and_scale(targets)
    centres = normalize(table.embeddings[rows].float(), dim=1)
    gram = _kernel(centres, centres)
    gram.diagonal().add_(RIDGE)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    standard = ((targets - mean) / scale).float()
    weights = inverse @ standard
    out = torch.cat([_kernel(normalize(x.float(), dim=1), centres) @ weights for x in table.embeddings.split(CHUNK)])
    out[rows] = standard - weights / inverse.diagonal()[:, None]
    return Estimates.from_joint((mean + out.double() * scale.nan_to_num(posinf=0.0)).float())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """exp(-gamma |x - y|^2) for vectors of length 1, [B, n]."""
    return (x @ y.T).sub_(1.0).mul_(2 * GAMMA).exp_()
