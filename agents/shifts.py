"""Tests whether what experts do has shifted: against what was predicted of them, or against what they did before.

n values of one expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import ndtri, stdtr

LEVEL = 0.001  # chance of a false alarm over all tests together, apart from errors of the predictions
LEAST = 20  # values, of fewer of which nothing is said
SCORE_SHIFT = 0.1  # smaller shifts may be errors of the predictions
RATIO_SHIFT = math.log(1.25)


@dataclass(frozen=True)
class Shift:
    """A difference of means: of scores, or of the logarithms of amounts.

    Attributes:
        mean: the difference.
        z: the same in standard errors.
        least: smaller differences do not count.
    """

    mean: float
    z: float
    least: float

    def is_sure(self, tests: int) -> bool:
        """Whether it is large, and no chance: a two-sided z-test with Bonferroni's correction for so many tests."""
        limit = NormalDist().inv_cdf(1 - LEVEL / (2 * max(tests, 1)))
        return abs(self.mean) > self.least and abs(self.z) > limit


def score_against_prediction(predicted: np.ndarray, observed: np.ndarray) -> Shift:
    """Scores in [0, 1] against their predictions, [n] each, whose variance is that of right or wrong."""
    probability = predicted.clip(0.02, 0.98)
    stderr = np.sqrt((probability * (1 - probability)).sum()) / len(observed)
    return _shift(observed - probability, float(stderr), SCORE_SHIFT)


def ratio_to_prediction(predicted: np.ndarray, observed: np.ndarray) -> Shift:
    """Amounts against their predictions, [n] each; those that are not above 0 do not count."""
    above = (observed > 0) & (predicted > 0)
    log_ratio = np.log(observed[above] / predicted[above]) if above.any() else np.zeros(1)
    stderr = max(float(log_ratio.std()), 1e-3) / math.sqrt(len(log_ratio))
    return _shift(log_ratio, stderr, RATIO_SHIFT)


def _shift(residual: np.ndarray, stderr: float, least: float) -> Shift:
    mean = float(residual.mean())
    return Shift(mean, mean / stderr, least)


def score_against_before(now: np.ndarray, before: np.ndarray) -> Shift:
    """Scores in [0, 1] against earlier ones, [n] and [m].

    One right and one wrong answer are added to both, so that a few equal scores are no proof (Agresti and Caffo, 2000).
    """
    z = _welch_z(*(np.append(scores, (0.0, 1.0)) for scores in (now, before)))
    return Shift(float(now.mean() - before.mean()), z, SCORE_SHIFT)


def ratio_to_before(now: np.ndarray, before: np.ndarray) -> Shift:
    """Amounts above 0 against earlier ones, [n] and [m]: their logarithms, since few answers are very long."""
    later, earlier = np.log(now), np.log(before)
    return Shift(float(later.mean() - earlier.mean()), _welch_z(later, earlier), RATIO_SHIFT)


def _welch_z(later: np.ndarray, earlier: np.ndarray) -> float:
    """Welch's t of the difference of means, as a normal deviate with the same chance."""
    parts = [(float(values.var(ddof=1)) / len(values), len(values)) for values in (later, earlier)]
    variance = max(sum(of for of, _ in parts), 1e-6)  # equal values are no proof
    freedom = variance**2 / max(sum(of**2 / (n - 1) for of, n in parts), 1e-30)
    difference = float(later.mean() - earlier.mean())
    chance = max(float(stdtr(freedom, -abs(difference) / math.sqrt(variance))), 1e-300)
    return math.copysign(-float(ndtri(chance)), difference)
