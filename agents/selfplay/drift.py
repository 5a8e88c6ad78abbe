"""Tests whether experts have changed: their new answers against the last agent's predictions.

n new answers of one expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

import numpy as np

from agents.selfplay.context import SelfPlay
from agents.selfplay.records import Drift
from experts.collect.table import GradedAnswer

LEVEL = 0.001  # chance of a false alarm in a whole run, apart from errors of the predictions
LEAST_ANSWERS = 20
SCORE_SHIFT = 0.1  # smaller shifts may be errors of the predictions
COST_SHIFT = math.log(1.25)


def measure_drift(selfplay: SelfPlay, number: int, graded: Iterable[GradedAnswer]) -> dict[str, Drift]:
    """By expert, how its answers of a round differ from the predictions of the last agent; empty in round 0.

    Questions whose reference was voted on are easier than others, so if there are any, only a lower score counts as a
    change. It may also come from an error that the other experts share.
    """
    if number == 0:
        return {}
    agent = selfplay.agent(number - 1)
    by_expert: dict[str, list[GradedAnswer]] = {name: [] for name in agent.experts}
    for one in graded:
        by_expert[one.expert].append(one)
    any_voted = bool(selfplay.voting(number).references)
    drift = {}
    for k, (name, answers) in enumerate(by_expert.items()):
        estimates = selfplay.predict(agent, [one.query for one in answers])
        predicted = estimates.score[:, k].double().numpy(), estimates.cost_usd[:, k].double().numpy()
        observed = np.array([one.grade.score for one in answers]), np.array([one.answer.cost_usd for one in answers])
        drift[name] = detect_drift(predicted, observed, len(agent.experts), rises=not any_voted)
    return drift


def detect_drift(
    predicted: tuple[np.ndarray, np.ndarray], observed: tuple[np.ndarray, np.ndarray], tests: int, rises: bool = True
) -> Drift:
    """Compares predicted with observed scores and costs_usd, [n] each.

    A z-test of the mean residual, with Bonferroni's correction for `tests` tests of two numbers each. A shift must also
    be large, since predictions have errors of their own and queries are drawn where they are uncertain.

    Args:
        rises: whether a score above its prediction counts as a change.
    """
    n = len(observed[0])
    if n < LEAST_ANSWERS:
        return Drift(n, 0.0, 0.0, 0.0, 0.0, False)
    probability = predicted[0].clip(0.02, 0.98)
    score, score_z = _mean_z(observed[0] - probability, np.sqrt((probability * (1 - probability)).sum()) / n)
    paid = (observed[1] > 0) & (predicted[1] > 0)
    log_ratio = np.log(observed[1][paid] / predicted[1][paid]) if paid.any() else np.zeros(1)
    cost, cost_z = _mean_z(log_ratio, max(float(log_ratio.std()), 1e-3) / math.sqrt(len(log_ratio)))
    limit = NormalDist().inv_cdf(1 - LEVEL / (4 * max(tests, 1)))
    score_changed = abs(score) > SCORE_SHIFT and abs(score_z) > limit and (rises or score < 0)
    cost_changed = abs(cost) > COST_SHIFT and abs(cost_z) > limit
    return Drift(n, score, score_z, cost, cost_z, score_changed or cost_changed)


def _mean_z(residual: np.ndarray, stderr: float) -> tuple[float, float]:
    mean = float(residual.mean())
    return mean, mean / float(stderr)
