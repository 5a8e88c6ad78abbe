"""Has an expert changed behind its name? Its fresh answers against what was foretold of them.

n fresh answers of one expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.001  # chance of a false alarm in a whole run, but for the estimates' own errors
LEAST_ANSWERS = 20
SCORE_SHIFT = 0.1  # smaller ones may be the estimates' own errors
COST_SHIFT = math.log(1.25)


@dataclass(frozen=True)
class Drift:
    """How an expert's fresh answers differ from their estimates.

    Attributes:
        answers: n.
        score: by how much it scored more than was foretold, in the mean.
        score_z: the same in standard errors.
        cost: mean logarithm of what calls cost over what was foretold.
        cost_z: the same in standard errors.
        changed: both far from 0 and beyond chance, in score or cost.
    """

    answers: int
    score: float
    score_z: float
    cost: float
    cost_z: float
    changed: bool


def detect_drift(
    told: tuple[np.ndarray, np.ndarray], came: tuple[np.ndarray, np.ndarray], tests: int, rises: bool = True
) -> Drift:
    """Compares estimated scores and costs_usd, [n] each, with those that came, [n] each.

    A z-test of the mean residual, Bonferroni's correction for `tests` tests of two numbers each; only a shift that is
    large besides counts, since estimates are off a little themselves and the queries are drawn where they are doubtful.

    Args:
        rises: whether a score above its estimate counts.
    """
    n = len(came[0])
    if n < LEAST_ANSWERS:
        return Drift(n, 0.0, 0.0, 0.0, 0.0, False)
    chance = told[0].clip(0.02, 0.98)
    score, score_z = _mean_z(came[0] - chance, np.sqrt((chance * (1 - chance)).sum()) / n)
    paid = (came[1] > 0) & (told[1] > 0)
    ratio = np.log(came[1][paid] / told[1][paid]) if paid.any() else np.zeros(1)
    cost, cost_z = _mean_z(ratio, max(float(ratio.std()), 1e-3) / math.sqrt(len(ratio)))
    limit = NormalDist().inv_cdf(1 - LEVEL / (4 * max(tests, 1)))
    other_score = abs(score) > SCORE_SHIFT and abs(score_z) > limit and (rises or score < 0)
    other_cost = abs(cost) > COST_SHIFT and abs(cost_z) > limit
    return Drift(n, score, score_z, cost, cost_z, other_score or other_cost)


def _mean_z(residual: np.ndarray, stderr: float) -> tuple[float, float]:
    mean = float(residual.mean())
    return mean, mean / float(stderr)
