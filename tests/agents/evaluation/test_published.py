"""The published measures give what a calculation by hand gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agents.evaluation.published import (
    arena_score,
    macro_mean,
    overshoot,
    strong_call_apgr,
    strong_call_cpt,
    strong_call_curve,
)
from leeroo_env import InputError

WEAK, STRONG = 0.6, 0.8
HALF = (np.array([0.5]), np.array([0.75]))  # half of the calls recover 3/4 of the gap


def test_apgr_by_hand():
    assert strong_call_apgr(*HALF, WEAK, STRONG) == pytest.approx((0 + 0.75) / 2 * 0.5 + (0.75 + 1) / 2 * 0.5)
    worse = np.array([0.75, 0.25]), np.array([0.7, 0.55])  # in any order; below the weak model counts as negative
    assert strong_call_apgr(*worse, WEAK, STRONG) == pytest.approx(
        0.25 * (0 - 0.25) / 2 + 0.5 * (-0.25 + 0.5) / 2 + 0.25 * (0.5 + 1) / 2
    )


@pytest.mark.parametrize("points", [0, 1, 9])
def test_a_lottery_recovers_the_share_that_it_calls(points: int):
    share = np.linspace(0, 1, points + 2)[1:-1]
    score = WEAK + share * (STRONG - WEAK)
    assert strong_call_apgr(share, score, WEAK, STRONG) == pytest.approx(0.5)
    for fraction in (0.2, 0.5, 0.8):
        assert strong_call_cpt(share, score, WEAK, STRONG, fraction) == pytest.approx(fraction)


def test_cpt_by_hand():
    assert strong_call_cpt(*HALF, WEAK, STRONG, 0.5) == pytest.approx(0.5 * 0.5 / 0.75)
    assert strong_call_cpt(*HALF, WEAK, STRONG, 0.8) == pytest.approx(0.5 + 0.5 * 0.05 / 0.25)
    assert strong_call_cpt(*HALF, WEAK, STRONG, 0.0) == 0
    better = np.array([0.5]), np.array([0.85])  # better than the strong model alone
    assert strong_call_cpt(*better, WEAK, STRONG, 1.0) == pytest.approx(0.5 / 1.25)


@pytest.mark.parametrize(
    ("share", "score", "weak", "strong"),
    [([1.5], [0.7], 0.6, 0.8), ([0.5, 0.6], [0.7], 0.6, 0.8), ([0.5], [0.7], 0.8, 0.8), ([math.nan], [0.7], 0.6, 0.8)],
)
def test_curves_without_a_meaning_are_refused(share: list[float], score: list[float], weak: float, strong: float):
    with pytest.raises(InputError):
        strong_call_curve(np.array(share), np.array(score), weak, strong)


@pytest.mark.parametrize(
    ("accuracy", "usd", "expected"),
    [
        (0.7, 0.0044, 1.1 * 0.7 / (0.07 + 1)),  # the cheapest: C is 1
        (0.7, 0.001, 1.1 * 0.7 / (0.07 + 1)),  # and no more than 1
        (0.7, 0.0, 1.1 * 0.7 / (0.07 + 1)),
        (0.7, 200, 0.0),
        (0.7, 1000, 0.0),
        (0.7, math.sqrt(200 * 0.0044), 1.1 * 0.7 * 0.5 / (0.07 + 0.5)),  # half way on the scale of logarithms
        (0.0, 1.0, 0.0),
        (0.0, 200, 0.0),
        (1.0, 0.0044, 1.0),
    ],
)
def test_arena_score_by_hand(accuracy: float, usd: float, expected: float):
    assert arena_score(accuracy, usd) == pytest.approx(expected)


def test_overshoot_by_hand():
    assert overshoot(6.63e-4, 6.6e-4) == pytest.approx(3 / 660)
    assert overshoot(6.0e-4, 6.6e-4) == 0
    with pytest.raises(InputError):
        overshoot(1.0, 0.0)
    with pytest.raises(InputError):
        arena_score(1.2, 1.0)


def test_macro_mean_counts_every_test_the_same():
    assert macro_mean(np.array([1.0, 1.0, 1.0, 0.0]), np.array([0, 0, 0, 2])) == 0.5
