"""Estimators of what each expert scores and costs on each query of a table, one file a method.

All are functions of (table, seed) that estimate every row of the table. They are fitted to the training split alone,
and the estimates of its rows are out of sample: each is made without the query's own answers.
"""

from agents.estimators.base import Estimates
from agents.estimators.domain_mean import domain_mean_estimates
from agents.estimators.kernel_ridge import kernel_ridge_estimates
from agents.estimators.knn import knn_estimates
from agents.estimators.linucb import linucb_estimates
from agents.estimators.mlp import mlp_estimates
from agents.estimators.ridge_pca import ridge_pca_estimates

__all__ = [
    "Estimates",
    "domain_mean_estimates",
    "kernel_ridge_estimates",
    "knn_estimates",
    "linucb_estimates",
    "mlp_estimates",
    "ridge_pca_estimates",
]
