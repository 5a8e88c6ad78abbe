"""Decides what to deploy, from results on val, and measures the choice on test.

Nothing is chosen on test; `RULE` says how. G budgets, K experts, n queries played at a budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from agents.evaluation.evaluate import Result, always, clustered_stderr, lead
from agents.policies.hull import upper_hull
from leeroo_env.table import ExpertTable

AGENT = "agent"
ONE_CALL, SEVERAL_CALLS = "agent with one call", "agent with several calls"  # of two agents, the one not kept
IGNORE_QUERY = ("best mixture", "best single", "cheapest", "random")  # routers that do
TOLERANCE = 0.01  # of the score: what is further below is not as good, however few the queries
KEPT = 0.95  # of the best expert's score: what a cheaper router must keep at least to be deployed
LEAST_GAIN = 0.001  # in score, of several calls over one: they take longer, and are more to run
WORSE = 2.0  # standard errors by which several calls may score less than one at a budget
RULE = (
    "on the val queries alone, the cheapest budget at which the agent, or a router or single expert that is clearly "
    "better there, scores as much as the best expert, and if there is none at least 95 % of it, else the best expert "
    "alone; clearly better is by more than one standard error, as much is at most one standard error and 1 point less, "
    "and a single expert is preferred where it scores as much for no more money."
)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, whose ends are NaN where there are too few queries for one."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Choice:
    """What to deploy, as val has it.

    Attributes:
        name: of a router, or "always EXPERT".
        expert: the expert, where it is one alone.
        budget_usd: dollars a query; for one expert alone its mean cost.
        place: of the budget among those of the results.
        matches: whether it is as good on val as the best expert.
        score: on val at the budget.
        best_router: the one with the best mean score on val, beside the agent and those that ignore the query.
    """

    name: str
    expert: int | None
    budget_usd: float
    place: int
    matches: bool
    score: float
    best_router: str | None


@dataclass(frozen=True)
class CallsChoice:
    """Whether the agent keeps several calls a query or one, as train and val have it.

    Attributes:
        several: whether several are kept.
        max_calls: how many that may be.
        gain: in score of several over one, on the same queries; mean over the budgets.
        stderr: its standard error.
        worst_budget_usd_per_1000_queries: where several do least well, by the gain plus its standard error.
        worst_gain: there.
        worst_stderr: its standard error.
        trained: whether several calls were; else these are the numbers of the two plans.
    """

    several: bool
    max_calls: int
    gain: float
    stderr: float
    worst_budget_usd_per_1000_queries: float
    worst_gain: float
    worst_stderr: float
    trained: bool = True


def choose_calls(budgets_usd: Sequence[float], several: Result, one: Result, max_calls: int) -> CallsChoice:
    """Several calls are kept where they gain at least `LEAST_GAIN` in the mean over the budgets [G], dollars a query,
    and at none of them lose more than `WORSE` standard errors: with one, a budget out of six would fail by chance more
    often than not. The results are of the same episodes."""
    gains, stderrs, gain, stderr = lead(several, one)
    worst = int(np.lexsort((gains, (gains + stderrs).round(9)))[0])
    return CallsChoice(
        several=gain >= LEAST_GAIN - 1e-9 and bool((gains >= -WORSE * stderrs - 1e-9).all()),
        max_calls=max_calls,
        gain=gain,
        stderr=stderr,
        worst_budget_usd_per_1000_queries=1000 * budgets_usd[worst],
        worst_gain=float(gains[worst]),
        worst_stderr=float(stderrs[worst]),
    )


def choose(
    table: ExpertTable, budgets_usd: Sequence[float], results: Mapping[str, Result], places: Sequence[int]
) -> Choice:
    """The choice by `RULE`.

    Args:
        table: its train and val splits are used.
        budgets_usd: [G], rising, dollars a query.
        results: on val at these budgets, by router; the agent as "agent", if there is one.
        places: of the budgets to choose among, rising.
    """
    alone = experts_alone(table, next(iter(results.values())))
    best = list(alone)[reference_experts(table)[0]]
    options = {**results, **alone}
    candidates = {g: _candidate(g, budgets_usd[g], results, alone, best) for g in places}
    matching = [g for g in places if _as_good(options[candidates[g]], alone[best], g)]
    keeping = [g for g in places if options[candidates[g]].score[g] >= KEPT * alone[best].score[g]]
    place = [*matching, *keeping, places[-1]][0]
    name = candidates[place]
    if not (matching or keeping) and alone[best].cost_usd[place] <= budgets_usd[place] * (1 + 1e-9):
        name = best
    name = _or_one_expert(name, place, options, alone)
    return Choice(
        name=name,
        expert=list(alone).index(name) if name in alone else None,
        budget_usd=float(alone[name].cost_usd[place]) if name in alone else budgets_usd[place],
        place=place,
        matches=_as_good(options[name], alone[best], place),
        score=float(options[name].score[place]),
        best_router=best_router(results),
    )


def experts_alone(table: ExpertTable, like: Result) -> dict[str, Result]:
    """What each of the K experts scores and costs by itself on the queries of a result, as "always EXPERT"."""
    return {f"always {name}": always(table, k, like) for k, name in enumerate(table.experts)}


def reference_experts(table: ExpertTable) -> tuple[int, int]:
    """The best expert (of equals the cheapest) and the most expensive one (of equals the best), on train and val."""
    rows = np.concatenate([table.rows(split).cpu().numpy() for split in ("train", "val")])
    score, cost_usd = (x[rows].double().mean(dim=0).cpu().numpy() for x in (table.scores, table.costs_usd))
    return int(np.lexsort((cost_usd, -score))[0]), int(np.lexsort((-score, -cost_usd))[0])


def best_router(results: Mapping[str, Result]) -> str | None:
    """The router with the best mean score, beside the agent and those that ignore the query."""
    others = [name for name in results if name not in (AGENT, *IGNORE_QUERY)]
    return max(others, key=lambda name: results[name].mean_score, default=None)


def _candidate(
    place: int, budget_usd: float, results: Mapping[str, Result], alone: Mapping[str, Result], best: str
) -> str:
    """The agent, or the best of what is clearly better at the budget, but for the `best` expert, which it is to match.
    Without an agent the best of all."""
    affordable = {k: one for k, one in alone.items() if k != best and one.cost_usd[place] <= budget_usd * (1 + 1e-9)}
    options = {**results, **affordable}
    if AGENT in results:
        agent = results[AGENT]
        options = {name: one for name, one in options.items() if name == AGENT or _clearly_above(one, agent, place)}
    return max(options, key=lambda name: float(options[name].score[place]))


def _or_one_expert(name: str, place: int, options: Mapping[str, Result], alone: Mapping[str, Result]) -> str:
    """The best expert alone that costs no more than the choice `name` and scores as much; else that."""
    chosen = options[name]
    spent_usd = chosen.cost_usd[place] * (1 + 1e-9)
    alike = [k for k, one in alone.items() if one.cost_usd[place] <= spent_usd and _as_good(one, chosen, place)]
    return max(alike, key=lambda k: float(alone[k].score[place]), default=name)


def _difference(one: Result, other: Result, place: int) -> tuple[float, float]:
    """How much more `one` scores at a budget, and the standard error of that."""
    gain = one.scored[place] - other.scored[place]
    return float(gain.mean()), clustered_stderr(gain, one.rows[place])


def _clearly_above(one: Result, other: Result, place: int) -> bool:
    gain, stderr = _difference(one, other, place)
    return gain > stderr + 1e-9


def _as_good(one: Result, other: Result, place: int) -> bool:
    gain, stderr = _difference(one, other, place)
    return gain >= -min(stderr, TOLERANCE) - 1e-9


def mixtures(alone: Sequence[Result], place: int) -> tuple[np.ndarray, np.ndarray]:
    """Spend and score of the experts whose mixtures are best, by rising spend: their upper convex hull."""
    cost_usd, score = (np.array([getattr(one, name)[place] for one in alone]) for name in ("cost_usd", "score"))
    hull = upper_hull(cost_usd, score)
    return cost_usd[hull], score[hull]


def mean_interval(values: np.ndarray, clusters: np.ndarray) -> Interval:
    """The mean of `values` [n] and its 95 % interval, by Student's t over the distinct `clusters` [n]."""
    half = _quantile(clusters) * clustered_stderr(values, clusters)
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)


def savings(paid_usd: np.ndarray, instead_usd: np.ndarray, clusters: np.ndarray) -> Interval | None:
    """The share of `instead_usd` [n] that is saved by paying `paid_usd` [n] for the same queries.

    The interval is that of a ratio of means, linearised (Cochran, Sampling Techniques, 1977, section 6.4), with the
    error clustered by query. None where there is nothing to pay.
    """
    total = float(instead_usd.mean())
    if total <= 0:
        return None
    ratio = float(paid_usd.mean()) / total
    half = _quantile(clusters) * clustered_stderr((paid_usd - ratio * instead_usd) / total, clusters)
    return Interval(1 - ratio, 1 - ratio - half, 1 - ratio + half)


def _quantile(clusters: np.ndarray) -> float:
    """Of Student's t, for a 95 % interval over distinct clusters; NaN for one."""
    n = len(np.unique(clusters))
    return float(stdtrit(n - 1, 0.975)) if n > 1 else float("nan")
