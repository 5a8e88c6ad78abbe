"""The measures of published benchmarks of routers, as their own papers and programs define them.

`agents.evaluation.metrics` has AIQ, and APGR and CPT for any number of experts; here are those that hold for two models
or for one benchmark only. G measured points of a router's curve.
"""

from __future__ import annotations

import math

import numpy as np

from leeroo_env.errors import InputError

ARENA_WEIGHT = 0.1  # of accuracy against cost
ARENA_USD_PER_1000 = (0.0044, 200.0)  # the costs that count as best and as worst


def strong_call_curve(
    share: np.ndarray, score: np.ndarray, weak: float, strong: float
) -> tuple[np.ndarray, np.ndarray]:
    """The share of calls to the strong model and the performance gap recovered (PGR), [G + 2] by rising share.

    RouteLLM (Ong et al., 2024, arXiv 2406.18665, section 3): PGR = (score - weak) / (strong - weak). The curve begins
    with the weak model alone and ends with the strong one alone, as the thresholds of its `evaluate.py` do.

    Args:
        share: [G], of the queries that go to the strong model, 0 to 1.
        score: [G], mean a query.
        weak, strong: the models' own scores on the same queries.

    Raises:
        InputError: shares out of range, or a strong model that is not better.
    """
    share, score = np.asarray(share, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if share.shape != score.shape or share.ndim != 1 or not ((share >= 0) & (share <= 1)).all():
        raise InputError(f"shares {list(share.shape)} of strong calls: must be from 0 to 1, one for each score")
    if not strong > weak:
        raise InputError(f"strong model {strong:g}, weak model {weak:g}: there is no gap to recover")
    order = np.argsort(share, kind="stable")
    recovered = (score[order] - weak) / (strong - weak)
    return np.concatenate([[0.0], share[order], [1.0]]), np.concatenate([[0.0], recovered, [1.0]])


def strong_call_apgr(share: np.ndarray, score: np.ndarray, weak: float, strong: float) -> float:
    """RouteLLM's average performance gap recovered: the area under PGR over the share of strong calls.

    The trapezoids of its `evaluate.py`; a lottery between the two models gets 0.5. Arguments as `strong_call_curve`.
    """
    return float(np.trapezoid(*reversed(strong_call_curve(share, score, weak, strong))))


def strong_call_cpt(share: np.ndarray, score: np.ndarray, weak: float, strong: float, fraction: float) -> float:
    """RouteLLM's call-performance threshold: the least share of strong calls with a PGR of `fraction`, 0 to 1.

    Between measured points the curve is straight. Its `evaluate.py` interpolates the share over the score, which is the
    same where the curve rises. Other arguments as `strong_call_curve`.
    """
    x, y = strong_call_curve(share, score, weak, strong)
    reached = int((y >= fraction).argmax())  # the last point has 1
    if reached == 0:
        return 0.0
    way = (fraction - y[reached - 1]) / (y[reached] - y[reached - 1])
    return float(x[reached - 1] + way * (x[reached] - x[reached - 1]))


def arena_score(accuracy: float, usd_per_1000_queries: float) -> float:
    """RouterArena's score, 0 to 1: a weighted harmonic mean of accuracy and cheapness (Lu et al., 2025, arXiv
    2510.00202).

    (1 + b) A C / (b A + C) with b = 0.1 and C = (log2 200 - log2 cost) / (log2 200 - log2 0.0044), for a cost in
    dollars per 1,000 queries that is cut to 0.0044 to 200, as `compute_arena_score` of its program does.

    Raises:
        InputError: an accuracy not in [0, 1], or a negative cost.
    """
    if not (0 <= accuracy <= 1 and usd_per_1000_queries >= 0):
        raise InputError(f"accuracy {accuracy:g} at {usd_per_1000_queries:g} dollars: must be 0 to 1, and 0 or more")
    low, high = ARENA_USD_PER_1000
    cheapness = math.log2(high / min(max(usd_per_1000_queries, low), high)) / math.log2(high / low)
    below = ARENA_WEIGHT * accuracy + cheapness
    return (1 + ARENA_WEIGHT) * accuracy * cheapness / below if below else 0.0


def overshoot(usd_per_query: float, budget_usd: float) -> float:
    """The share of a budget, dollars a query, that was spent beyond it: 0 where it was kept."""
    if not budget_usd > 0:
        raise InputError(f"budget {budget_usd:g} dollars a query: must be above 0")
    return max(0.0, usd_per_query / budget_usd - 1)


def macro_mean(scored: np.ndarray, tests: np.ndarray) -> float:
    """The mean over tests of the mean score of each, however many queries it has: RouterDC's and LLMRouterBench's
    average. From scores [n] and the number of each query's test [n]."""
    sums, counts = np.bincount(tests, weights=scored), np.bincount(tests)
    return float((sums[counts > 0] / counts[counts > 0]).mean())
