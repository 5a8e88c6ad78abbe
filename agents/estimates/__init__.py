"""What each expert is likely to score and cost on each query of a table: one function, and one file, a method.

All are called with (table, seed) and return [N, 2K] float32 on the table's device, scores then costs_usd, for every
row of the table. They learn from the training split alone, and the estimates of its rows never saw their own query.
"""

from agents.estimates.components import component_ridge
from agents.estimates.domains import domain_means
from agents.estimates.kernel import kernel_ridge
from agents.estimates.knn import nearest
from agents.estimates.linucb import linucb
from agents.estimates.mlp import network
from agents.estimates.targets import split_estimates

__all__ = ["component_ridge", "domain_means", "kernel_ridge", "linucb", "nearest", "network", "split_estimates"]
