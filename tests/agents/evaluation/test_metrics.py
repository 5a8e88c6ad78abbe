"""The numbers that sum up a curve are those of their papers, and say what they are named for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.evaluation import metrics
from agents.evaluation.evaluate import evaluate
from agents.evaluation.metrics import Point
from agents.routers import FixedMixture, Router
from leeroo_env import InputError, dynamics
from tests.conftest import random_table

WEAK, STRONG = Point(1.0, 0.2), Point(11.0, 0.7)

curves = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), min_size=1, max_size=8).map(
    lambda points: (np.array([x / 2 for x, _ in points]), np.array([y / 20 for _, y in points]))
)


def lottery(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cost and score of the two experts mixed at random, `share` of the calls to the strong one."""
    mix = [weak + share * (strong - weak) for weak, strong in zip(WEAK, STRONG, strict=True)]
    return mix[0], mix[1]


@pytest.mark.parametrize(
    ("cost", "score", "cost_range", "expected"),
    [
        ([1, 2], [0.4, 0.6], (1, 2), 0.5),  # a trapezoid
        ([1, 2], [0.4, 0.6], (1, 4), (0.5 + 0.6 * 2) / 3),  # level to the right of the last point
        ([1, 2], [0.4, 0.6], (0, 2), (0.2 + 0.5) / 2),  # straight to nothing for nothing on the left
        ([1, 2], [0.4, 0.6], (0.5, 1.5), (0.15 + 0.225) / 1),  # cut on both sides within a segment
        ([1, 2, 3], [0.4, 0.4, 0.8], (1, 3), 0.6),  # the hull passes above the point in the middle
        ([1, 2, 3], [0.4, 0.8, 0.5], (1, 3), (0.6 + 0.8) / 2),  # and never falls
        ([3, 1, 2], [0.5, 0.4, 0.8], (1, 3), (0.6 + 0.8) / 2),  # in any order
        ([0, 2], [0.4, 0.6], (0, 2), 0.5),  # a free point outdoes asking nobody
        ([5e-324], [0.4], (1, 3), 0.4),  # a cost too small to divide by
        ([1], [0.4], (2, 3), 0.4),  # a single point, and a range beyond it
    ],
)
def test_aiq_is_the_mean_height_of_the_hull(cost: list, score: list, cost_range: tuple, expected: float):
    assert metrics.aiq(np.array(cost), np.array(score), cost_range) == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(curves, st.floats(0, 10), st.floats(0.5, 10))
def test_aiq_is_that_of_a_fine_riemann_sum_over_all_mixtures(curve: tuple, low: float, width: float):
    """Protects the hull: its height at a cost is the best mixture of two points that costs no more."""
    cost, score = np.append(0.0, curve[0]), np.append(0.0, curve[1])
    grid = low + width * (np.arange(400) + 0.5) / 400
    height = np.array([score[cost <= x].max() for x in grid])
    for i in range(len(cost)):
        for j in range(len(cost)):
            if cost[i] < cost[j]:
                line = score[i] + (score[j] - score[i]) * ((grid - cost[i]) / (cost[j] - cost[i]))
                height = np.where((grid >= cost[i]) & (grid <= cost[j]), np.maximum(height, line), height)
    assert metrics.aiq(curve[0], curve[1], (low, low + width)) == pytest.approx(height.mean(), abs=5e-3)


@pytest.mark.parametrize("cost_range", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0)])
def test_aiq_refuses_ranges_that_do_not_rise(cost_range: tuple):
    with pytest.raises(InputError, match="must rise"):
        metrics.aiq(np.ones(2), np.ones(2), cost_range)


def test_a_curve_of_unlike_lengths_is_refused():
    with pytest.raises(InputError, match=r"cost \[2\], score \[3\]"):
        metrics.matching_cost(np.ones(2), np.ones(3), 0.5)


def test_a_lottery_between_two_experts_recovers_the_gap_share_by_share():
    """RouteLLM's random router: CPT(x) = x and APGR = 0.5, for two experts of constant cost, as in the paper."""
    curve = lottery(np.linspace(0, 1, 7))
    for fraction in (0.0, 0.2, 0.5, 0.8, 1.0):
        assert metrics.cpt(*curve, WEAK, STRONG, fraction) == pytest.approx(fraction)
    assert metrics.apgr(*curve, WEAK, STRONG) == pytest.approx(0.5)


def test_shares_and_gaps_by_hand():
    cost, score = np.array([3.0, 6.0, 13.5]), np.array([0.3, 0.6, 0.75])  # shares 0.2, 0.5, 1.25; PGR 0.2, 0.8, 1.1
    assert metrics.cpt(cost, score, WEAK, STRONG, 0.1) == pytest.approx(0.1), "from the weak expert to the first point"
    assert metrics.cpt(cost, score, WEAK, STRONG, 0.5) == pytest.approx(0.35)
    assert metrics.cpt(cost, score, WEAK, STRONG, 1.1) == pytest.approx(1.25), "more than the strong expert costs"
    assert math.isnan(metrics.cpt(cost, score, WEAK, STRONG, 1.11)), "never reached"
    areas = 0.2 * 0.1 + 0.3 * 0.5 + 0.5 * (0.8 + 0.3 * (0.25 / 0.75))
    assert metrics.apgr(cost, score, WEAK, STRONG) == pytest.approx(areas)
    assert metrics.apgr(cost[:2], score[:2], WEAK, STRONG) == pytest.approx(0.02 + 0.15 + 0.5 * 0.8), "level to share 1"
    assert metrics.apgr(np.array([0.5]), np.array([0.45]), WEAK, STRONG) == pytest.approx(0.5), "below the weak's cost"
    assert metrics.cpt(np.array([0.5]), np.array([0.45]), WEAK, STRONG, 0.5) == 0


def test_without_a_gap_nothing_is_recovered():
    for strong in (WEAK, Point(11.0, 0.2), Point(1.0, 0.7)):
        assert math.isnan(metrics.cpt(np.array([2.0]), np.array([0.5]), WEAK, strong, 0.5))
        assert math.isnan(metrics.apgr(np.array([2.0]), np.array([0.5]), WEAK, strong))


@settings(max_examples=100, deadline=None)
@given(curves, st.floats(0.05, 1.2), st.floats(0.05, 1.2))
def test_more_takes_more_and_a_better_curve_recovers_more(curve: tuple, one: float, other: float):
    cost, score = curve
    less, more = (metrics.cpt(cost, score, WEAK, STRONG, fraction) for fraction in sorted((one, other)))
    assert math.isnan(more) or less <= more
    better = np.minimum(score + 0.1, 1)
    assert metrics.apgr(cost, better, WEAK, STRONG) >= metrics.apgr(cost, score, WEAK, STRONG) - 1e-12
    again = metrics.cpt(cost, better, WEAK, STRONG, one)
    assert (
        math.isnan(metrics.cpt(cost, score, WEAK, STRONG, one))
        or again <= metrics.cpt(cost, score, WEAK, STRONG, one) + 1e-9
    )


def test_weak_is_the_cheapest_and_strong_the_best():
    cost, score = np.array([3.0, 1.0, 1.0, 9.0, 5.0]), np.array([0.1, 0.3, 0.4, 0.9, 0.9])
    assert metrics.weak_and_strong(cost, score) == (Point(1.0, 0.4), Point(5.0, 0.9))


def test_matching_cost_interpolates_what_the_running_maximum_leaves():
    cost, score = np.array([1.0, 2.0, 3.0, 5.0]), np.array([0.5, 0.4, 0.6, 0.55])
    expected = {0.3: 1.0, 0.5: 1.0, 0.55: 2.5, 0.6: 3.0}
    for target, spend in expected.items():
        assert metrics.matching_cost(cost, score, target) == pytest.approx(spend)
        assert metrics.matching_cost(cost[::-1], score[::-1], target) == pytest.approx(spend), "in any order"
    assert math.isnan(metrics.matching_cost(cost, score, 0.61))
    assert metrics.matching_cost(np.array([2.0, 2.0]), np.array([0.1, 0.9]), 0.5) == 2.0, "two scores for one spend"


def test_calls_are_counted_by_query():
    calls = metrics.calls_by_query(np.array([7, 3, 7, 7]), np.array([2, 0, 2, 1]), 3)
    assert calls.tolist() == [[1, 0, 0], [0, 1, 2]]


def test_collapse_by_hand():
    """Two queries, two calls each: 2 pairs of the same query, of which 1 agrees; 4 of different ones, 2 agree."""
    assert metrics.collapse_index(np.array([[2, 0], [1, 1]])) == pytest.approx((1 - 1 / 2) / (1 - 2 / 4))
    once = [[1, 0]]
    calls = np.array([[2, 0], [1, 1], *once])
    assert metrics.collapse_index(calls) == pytest.approx(1), "queries that occur once are left out"
    assert metrics.collapse_index(np.array([[2, 0], [0, 2]])) == 0
    assert metrics.collapse_index(np.array([[3, 0], [4, 0]])) == 1, "one expert for all"
    assert math.isnan(metrics.collapse_index(np.array([[1, 0], [0, 1]]))) and math.isnan(
        metrics.collapse_index(np.array([[5, 5]]))
    )


@pytest.mark.parametrize("odds", [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.98, 0.01, 0.01]])
@pytest.mark.parametrize("calls_each", [2, 9])
def test_a_lottery_that_ignores_the_query_has_collapsed(odds: list, calls_each: int):
    """Protects against the bias of few calls a query, which would make chance look like a choice."""
    rng = np.random.default_rng(0)
    index = [metrics.collapse_index(rng.multinomial(calls_each, odds, size=600)) for _ in range(40)]
    assert np.mean(index) == pytest.approx(1, abs=0.02)


def test_few_calls_are_unbiased_whatever_the_counts():
    """Uneven counts, many queries that occur twice: the plug-in estimate would be 0.5 too low."""
    rng = np.random.default_rng(1)
    counts = rng.integers(2, 4, size=2000)
    assert metrics.collapse_index(rng.multinomial(counts, [0.5, 0.5])) == pytest.approx(1, abs=0.06)


def test_between_the_query_and_the_lottery_lies_the_share_of_the_lottery():
    """Half of the calls follow the query: two calls for one agree beyond chance in a quarter of the pairs."""
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 1000, size=40_000)
    follows = rng.random(len(rows)) < 0.5
    experts = np.where(follows, rows % 3, rng.integers(0, 3, size=len(rows)))
    assert metrics.collapse_index(metrics.calls_by_query(rows, experts, 3)) == pytest.approx(0.75, abs=0.02)
    assert metrics.collapse_index(metrics.calls_by_query(rows, rows % 3, 3)) == 0


def test_the_mixture_that_ignores_queries_is_told_from_a_rule_that_reads_them():
    """End to end, on the calls of an evaluation; only the money left ties the mixture's choice to anything."""
    table = random_table(n=300)
    rules = dynamics.make_rules(table, "test", horizon=40)
    budget = float(table.mean_cost_usd().median())

    class BySign(Router):
        def choose(self, context):
            return (context.features[:, 0] > 0).long()

    index = []
    for router in (FixedMixture(table), BySign()):
        result = evaluate(router, rules, [budget], episodes=64)
        index.append(metrics.collapse_index(metrics.calls_by_query(result.rows[0], result.chosen[0], 4)))
    assert index[0] == pytest.approx(1, abs=0.05) and index[1] == 0


@pytest.mark.parametrize(
    ("level", "freedom", "expected"),
    [
        (0.95, 1, 12.7062),
        (0.95, 2, 4.30265),
        (0.95, 3, 3.18245),
        (0.95, 4, 2.77645),
        (0.95, 9, 2.26216),
        (0.95, 30, 2.04227),
        (0.99, 5, 4.03214),
        (0.5, 1, 1.0),
        (0.90, 1000, 1.64638),
    ],
)
def test_quantiles_are_those_of_published_tables(level: float, freedom: int, expected: float):
    values = np.arange(freedom + 1.0)
    half = metrics.interval(values, level)[1]
    assert half / (values.std(ddof=1) / np.sqrt(freedom + 1)) == pytest.approx(expected, rel=1e-5)


def test_interval_by_hand_and_for_a_single_seed():
    mean, half = metrics.interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2 and half == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    mean, half = metrics.interval(np.array([0.7]))
    assert mean == 0.7 and math.isnan(half)
    assert metrics.interval(np.array([0.5, 0.5]))[1] == 0
    for values, level in ((np.zeros(0), 0.95), (np.ones(3), 1.0), (np.ones(3), 0.0)):
        with pytest.raises(InputError):
            metrics.interval(values, level)


def test_intervals_cover_the_mean_as_often_as_they_say():
    """Protects what a normal quantile would get wrong: three seeds would cover 80 to 84 %, not 95 %."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(4000, 3))
    covered = [abs(mean) <= half for mean, half in map(metrics.interval, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)
