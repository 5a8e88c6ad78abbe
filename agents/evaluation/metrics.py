"""Single numbers for score-over-spend curves (AIQ, APGR, CPT, collapse index), and intervals over seeds.

A router's curve is G measured points in any order: dollars a query, `cost_usd` [G], and mean score a query, `score`
[G]. Where a curve is read between its points it is made non-decreasing (more money never has to be spent) and
interpolated linearly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from agents.policies.hull import upper_hull
from leeroo_env.errors import InputError


class Point(NamedTuple):
    """One expert, always: dollars a query and mean score."""

    cost_usd: float
    score: float


def weak_and_strong(mean_cost_usd: np.ndarray, mean_score: np.ndarray) -> tuple[Point, Point]:
    """The cheapest and the best-scoring of K experts, from their means [K].

    Of equally cheap ones the better is the weak, of equally good ones the cheaper the strong.
    """
    weak = np.lexsort((-mean_score, mean_cost_usd))[0]
    strong = np.lexsort((mean_cost_usd, -mean_score))[0]
    weak_point, strong_point = (Point(float(mean_cost_usd[k]), float(mean_score[k])) for k in (weak, strong))
    return weak_point, strong_point


def aiq(cost_usd: np.ndarray, score: np.ndarray, cost_range_usd: tuple[float, float]) -> float:
    """Average Improvement in Quality: the mean height of the curve's non-decreasing convex hull over a range of cost.

    The integral of the hull from c_min to c_max over c_max - c_min (Hu et al., RouterBench, 2024, arXiv 2403.12031).
    Routers compare over the same range only. To the right of its last point a hull stays level, as in RouterBench's own
    code. To the left it goes straight to no score for no money, by leaving queries unanswered; that code, which divides
    by c_max, counts what lies left of a router's first point as 0.

    Args:
        cost_usd: [G], not negative.
        score: [G].
        cost_range_usd: c_min and c_max.

    Raises:
        InputError: an empty or negative range, or arrays that do not fit.
    """
    cost_usd, score = _points(cost_usd, score)
    low, high = cost_range_usd
    if not 0 <= low < high:
        raise InputError(f"cost range {low:g} to {high:g} dollars: must rise, from 0 or more")
    cost_usd, score = np.append(0.0, cost_usd), np.append(0.0, score)
    hull = upper_hull(cost_usd, score)
    return _mean_height(cost_usd[hull], score[hull], low, high)


def cpt(cost_usd: np.ndarray, score: np.ndarray, weak: Point, strong: Point, fraction: float) -> float:
    """Call-performance threshold: the least share of strong calls that recovers `fraction` of the performance gap.

    The gap recovered is PGR = (score - weak score) / (strong score - weak score) (Ong et al., RouteLLM, 2024, arXiv
    2406.18665). RouteLLM has two models and counts calls to the strong one. With K experts a share of calls becomes a
    share of the strong expert's extra cost, (cost - weak cost) / (strong cost - weak cost): the same number for two
    experts that cost the same for every query. The weak expert, at share 0, belongs to every curve, so that none is
    below PGR 0; points cheaper than the weak expert count as share 0.

    Returns:
        The share, above 1 where it takes more than the strong expert costs; nan where no measured point recovers as
        much, or where the strong expert is not both more expensive and better than the weak.
    """
    curve = _recovered(cost_usd, score, weak, strong)
    return math.nan if curve is None else _first_at(*curve, fraction)


def apgr(cost_usd: np.ndarray, score: np.ndarray, weak: Point, strong: Point) -> float:
    """Average performance gap recovered: the mean of `cpt`'s PGR over shares of strong calls from 0 to 1.

    RouteLLM approximates this integral by the mean at ten shares; here it is exact for the interpolated curve, which
    starts from the weak expert and stays level after its last point. A lottery between the two experts, measured up to
    share 1, gets 0.5.

    Returns:
        The mean; nan where the strong expert is not both more expensive and better than the weak.
    """
    curve = _recovered(cost_usd, score, weak, strong)
    return math.nan if curve is None else _mean_height(*curve, 0.0, 1.0)


def matching_cost(cost_usd: np.ndarray, score: np.ndarray, target: float) -> float:
    """The least spend, dollars a query, at which the curve reaches the score `target`; nan where it never does.

    A curve whose cheapest point is there already gets that point's cost: nothing cheaper was measured.
    """
    return _first_at(*_rising(*_points(cost_usd, score)), target)


def calls_by_query(rows: np.ndarray, experts: np.ndarray, n_experts: int) -> np.ndarray:
    """How often each query was given to each expert, [N', K], from the rows [n] and experts [n] of n calls.

    N' counts the queries that occur, by ascending row.
    """
    asked, query = np.unique(rows, return_inverse=True)
    counts = np.bincount(query.ravel() * n_experts + experts, minlength=len(asked) * n_experts)
    return counts.reshape(len(asked), n_experts)


def collapse_index(calls: np.ndarray) -> float:
    """How little the choice of the expert depends on the query: 1 not at all, 0 entirely.

    One minus the agreement of the calls for one query beyond chance: 1 - (same - chance) / (1 - chance), as in Cohen's
    kappa (1960). `same` is how often two calls for the same query go to the same expert, `chance` how often two calls
    for different queries do. Both go over pairs of different calls, as in Krippendorff's alpha, so that a lottery that
    ignores the query gets 1 on average however few the calls; a sample may be a little above. If all calls go to one
    expert, it is 1. Queries that occur once tell nothing and are left out.

    A choice that follows the dollars left as well as the query lies between.

    Args:
        calls: [N', K], how often each query was given to each expert at one budget; `calls_by_query` counts them.

    Returns:
        The index, 0 or more; nan where fewer than two queries occur twice.
    """
    calls = np.asarray(calls, dtype=np.float64)
    calls = calls[calls.sum(axis=1) >= 2]
    if len(calls) < 2:
        return math.nan
    occurs, squares = calls.sum(axis=1), (calls**2).sum()
    same = (squares - occurs.sum()) / (occurs * (occurs - 1)).sum()
    chance = ((calls.sum(axis=0) ** 2).sum() - squares) / (occurs.sum() ** 2 - (occurs**2).sum())
    return 1.0 if chance == 1 else float((1 - same) / (1 - chance))


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of Student's t interval for the mean of independent `values` [n], such as one a seed.

    The half-width of a single value is nan.

    Raises:
        InputError: no values, or a level not between 0 and 1.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n == 0 or not 0 < level < 1:
        raise InputError(f"interval of {n} values at level {level:g}: needs a value and a level between 0 and 1")
    if n == 1:
        return float(values[0]), math.nan
    return float(values.mean()), float(stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1)) / math.sqrt(n)


def _points(cost_usd: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [G], by rising cost and score."""
    cost_usd, score = np.asarray(cost_usd, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if cost_usd.ndim != 1 or cost_usd.shape != score.shape or len(score) == 0:
        raise InputError(f"cost {list(cost_usd.shape)}, score {list(score.shape)}: not [G] and [G]")
    order = np.lexsort((score, cost_usd))
    return cost_usd[order], score[order]


def _rising(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x, np.maximum.accumulate(y)


def _recovered(
    cost_usd: np.ndarray, score: np.ndarray, weak: Point, strong: Point
) -> tuple[np.ndarray, np.ndarray] | None:
    """Shares of the strong expert's extra cost and the gap recovered, from (0, 0) on; None where there is no gap."""
    cost_usd, score = _points(cost_usd, score)
    if not (strong.cost_usd > weak.cost_usd and strong.score > weak.score):
        return None
    share = ((cost_usd - weak.cost_usd) / (strong.cost_usd - weak.cost_usd)).clip(min=0)
    recovered = (score - weak.score) / (strong.score - weak.score)
    return _rising(*_points(np.append(0.0, share), np.append(0.0, recovered)))


def _first_at(x: np.ndarray, y: np.ndarray, target: float) -> float:
    """Where the non-decreasing curve through (x, y) first reaches `target`; nan where it never does."""
    if not y[-1] >= target:
        return math.nan
    i = int((y >= target).argmax())
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (target - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))


def _mean_height(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    """Mean from `low` to `high` of the curve through (x, y), x rising; level outside its points."""
    x, y = np.pad(x, 1, constant_values=(min(low, x[0]), max(high, x[-1]))), np.pad(y, 1, mode="edge")
    left, right = x[:-1].clip(low, high), x[1:].clip(low, high)
    way = ((left + right) / 2).clip(x[:-1], x[1:]) - x[:-1]
    run = np.diff(x)
    heights = y[:-1] + np.diff(y) * np.divide(way, run, out=np.zeros_like(run), where=run > 0)
    return float((heights * (right - left)).sum() / (high - low))
