"""Tests whether experts have changed: their new answers against the last agent's predictions.

n new answers of one expert.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from agents.selfplay.context import SelfPlay
from agents.selfplay.records import Drift
from agents.shifts import LEAST, ratio_to_prediction, score_against_prediction
from experts.collect.table import GradedAnswer


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
    if n < LEAST:
        return Drift(n, 0.0, 0.0, 0.0, 0.0, False)
    score = score_against_prediction(predicted[0], observed[0])
    cost = ratio_to_prediction(predicted[1], observed[1])
    score_changed = score.is_sure(2 * tests) and (rises or score.mean < 0)
    changed = score_changed or cost.is_sure(2 * tests)
    return Drift(n, score.mean, score.z, cost.mean, cost.z, changed)
