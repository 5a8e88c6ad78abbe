"""What each expert is likely to score and cost on each query of a table: one function, and one file, a method.

All are called with (table, seed) and return [N, 2K] float32 on the table's device, scores then costs_usd, for every
row of the table. They learn from the training split alone, and the estimates of its rows never saw their own query.
"""

from agents.estimators.base import split_estimates
from agents.estimators.domain_mean import domain_means
from agents.estimators.kernel_ridge import kernel_ridge
from agents.estimators.knn import nearest
from agents.estimators.linucb import linucb
from agents.estimators.mlp import network
from agents.estimators.ridge_pca import component_ridge

__all__ = ["component_ridge", "domain_means", "kernel_ridge", "linucb", "nearest", "network", "split_estimates"]
