"""The upper convex hull of points of cost and score."""

from __future__ import annotations

import numpy as np


def upper_hull(cost: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Indices of the experts on the upper convex hull of score over cost, by rising cost: the cheapest to the best."""
    hull: list[int] = []
    for i in np.lexsort((-score, cost)):
        if hull and score[i] <= score[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(cost, score, hull[-1], i) >= _slope(cost, score, hull[-2], hull[-1]):
            hull.pop()
        hull.append(int(i))
    return np.array(hull)


def _slope(cost: np.ndarray, score: np.ndarray, i: int, j: int) -> float:
    return (score[j] - score[i]) / max(cost[j] - cost[i], 1e-30)
