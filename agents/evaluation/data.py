"""What a report says of the data: whether more training queries would pay, near duplicates, and what was fitted to all.

n training queries, V queries of val, K experts, G budgets, X prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from agents.estimators.base import MAX_EXACT, MAX_PANEL_QUERIES, Estimates, sample_rows
from agents.estimators.ensemble import Predictor
from agents.estimators.mlp import Networks, fit_networks
from agents.estimators.ridge_pca import ComponentRidge, fit_components
from agents.estimators.text_features import texts_of
from agents.evaluation.decision import Interval, mean_interval
from agents.evaluation.markdown import table_head, table_line
from agents.policies.hull import upper_hull
from agents.routers.base import price_grid
from leeroo_env.table import ExpertTable
from leeroo_env.table.duplicates import NEAR_DUPLICATE

PARTS = (8, 4, 2)  # of the training queries: an eighth, a quarter, half
FEWEST = 16  # training queries of a part
MOST_VAL = 4_096
PRICES = 48
PRICE_ENDS = (3.0, 0.01)  # of `price_grid`
LITTLE = 0.005  # a gain of score by twice as many queries that is not worth them


@dataclass(frozen=True)
class LearningCurve:
    """Scores on val by the number of training queries.

    Attributes:
        queries: of each part, and all of them last.
        score: mean over val and the budgets, of each.
        gain: of all over half.
    """

    queries: tuple[int, ...]
    score: tuple[float, ...]
    gain: Interval


def learning_curve(
    table: ExpertTable, predictor: Predictor, budgets_usd: Sequence[float], seed: int
) -> LearningCurve | None:
    """What estimates fitted to parts of the training queries are worth on val; None where there are too few.

    Of the agent's estimators one is fitted again: kernel ridge, or with more than 6,000 queries the networks, which
    take less time. Each query of val goes to the expert with the best estimated score less price x cost, at the prices
    that spend the budgets.
    """
    train, val = table.rows("train"), sample_rows(table.rows("val"), MOST_VAL, seed)
    sizes = [len(train) // part for part in PARTS if len(train) // part >= FEWEST]
    if len(sizes) < 2:
        return None
    exact = len(train) <= MAX_EXACT

    def fitted(rows: Tensor) -> ComponentRidge | Networks:
        return fit_components(table, rows, seed)[0] if exact else fit_networks(table, rows, seed)[0]

    models = [fitted(sample_rows(train, n, seed)) for n in sizes] + [predictor.ridge if exact else predictor.networks]
    texts = texts_of(table).take(pa.array(val.cpu().numpy()))
    scored = []
    for model in models:
        given = (texts,) if isinstance(model, ComponentRidge) else ()
        estimates = Estimates.from_joint(model.predict(table.embeddings[val], *given))
        scored.append(_scored(table, val, estimates, budgets_usd))
    return LearningCurve(
        queries=(*sizes, len(train)),
        score=tuple(float(one.mean()) for one in scored),
        gain=mean_interval(scored[-1] - scored[-2], np.arange(len(val))),
    )


def _scored(table: ExpertTable, rows: Tensor, estimates: Estimates, budgets_usd: Sequence[float]) -> np.ndarray:
    """The score of each of `rows` [V], mean over the budgets: of a lottery between two prices that spends each."""
    prices = price_grid(table.mean_cost_usd(), PRICES, *PRICE_ENDS)
    net = (estimates.score - price * estimates.cost_usd for price in prices)
    chosen = torch.stack([one.argmax(dim=1) for one in net], dim=1)  # [V, X]
    score, cost = (x[rows].gather(1, chosen).double().cpu().numpy() for x in (table.scores, table.costs_usd))
    order = cost.mean(axis=0).argsort(kind="stable")
    score, spent = score[:, order], cost.mean(axis=0)[order]
    hull = upper_hull(spent, score.mean(axis=0))
    place = np.interp(budgets_usd, spent[hull], np.arange(len(hull)))
    low = np.floor(place).astype(int)
    high, share = np.minimum(low + 1, len(hull) - 1), place - low
    mixed: np.ndarray = score[:, hull[low]] * (1 - share) + score[:, hull[high]] * share
    return mixed.mean(axis=1)


def data_lines(
    table: ExpertTable, predictor: Predictor, budgets_usd: Sequence[float], max_calls: int, seed: int
) -> list[str]:
    """The lines of the report."""
    curve = learning_curve(table, predictor, budgets_usd, seed)
    lines = [] if curve is None else ["## Would more training queries pay?", "", *_curve_lines(curve), ""]
    return [*lines, *(f"{line}\n" for line in (_duplicates(table), _fitted(predictor, max_calls)) if line)]


def _curve_lines(curve: LearningCurve) -> list[str]:
    gain, n = curve.gain, curve.queries
    points = f"{100 * gain.mean:+.1f} points (95 %: from {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    if gain.low > 0:
        verdict = "so more of the same kind are likely to pay, twice as many by somewhat less than that"
    elif gain.high < LITTLE:
        verdict = "so more of the same kind would bring little"
    else:
        verdict = "which val has too few queries to be sure of"
    return [
        f"**{n[-1]:,} training queries in place of {n[-2]:,} brought {points} on val, {verdict}.**",
        "",
        *table_head(["training queries", "score on val"]),
        *(table_line([f"{count:,}", f"{score:.4f}"]) for count, score in zip(n, curve.score, strict=True)),
        "",
        "One of the agent's estimators, fitted to a part of them; each query of val goes to the expert with the best "
        "estimated score less a price on its cost, at prices that spend the budgets; mean over these.",
    ]


def _duplicates(table: ExpertTable) -> str:
    first = table.first_alike
    later = first != torch.arange(len(first), device=first.device)
    if not bool(later.any()):
        return ""
    apart = int((table.split != table.split[first]).sum())
    across = f", {apart:,} of them in another split, where they flatter what is measured" if apart else ""
    return (
        f"Near duplicates: {int(later.sum()):,} of {len(table):,} queries are nearly the same as an earlier one "
        f"(cosine of embeddings above {NEAR_DUPLICATE}){across}. Estimates of a training query are made without its "
        "duplicates."
    )


def _fitted(predictor: Predictor, max_calls: int) -> str:
    if predictor.one_set:
        return ""
    n, cells = len(predictor.rows), predictor.neighbours.cells
    search = "a search of all" if cells is None else f"an index of {len(cells):,} cells"
    panels = f"; the routers of several calls to {MAX_PANEL_QUERIES:,} of them" if max_calls > 1 else ""
    return (
        f"Estimates are fitted to all {n:,} training queries: kernel ridge on {len(predictor.ridge.centres):,} "
        f"centres, neighbours by {search}{panels}."
    )
