"""Draws score over dollars: what a budget buys, and where it buys as much as the best expert.

G budgets.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from agents.evaluation.decision import AGENT, experts_alone, mixtures, reference_experts
from agents.evaluation.evaluate import Result
from agents.evaluation.headline import dollars
from agents.evaluation.metrics import matching_cost
from leeroo_env.table import ExpertTable

AGENT_COLOR, ROUTER_COLOR, MIXTURE_COLOR, INK = "#c8372d", "#2f6db3", "#8a8a8a", "#333333"
NAMED = 6  # experts by name: more would cover each other
MOST_LETTERS = 28


def draw_curve(
    table: ExpertTable, split: str, results: Mapping[str, Result], subject: str = AGENT, router: str | None = None
) -> Figure:
    """Score over dollars per 1,000 queries, up to what the most expensive expert costs.

    Lines are the subject, with a band of 95 %, another router, and the best mixtures of two experts; a level line is
    the best expert, and a mark is where the subject scores as much.

    Args:
        table: for the experts.
        split: what was played.
        results: by router, at the same budgets.
        subject: the name of the agent, or of the router that the report is about.
        router: the name of another to draw.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    own = results[subject]
    alone = experts_alone(table, own)
    best, most_expensive = (list(alone.values())[k] for k in reference_experts(table))
    top_usd = max(1000 * float(most_expensive.cost_usd[0]), float(1000 * own.cost_usd.max()) * 0.6) or 1.0
    _draw_mixtures(axes, alone, top_usd)
    others = [name for name in [router] if name is not None and name in results and name != subject]
    for name in others:
        _draw_line(axes, results[name], f"best router: {short(name)}", ROUTER_COLOR, 1.6, "--")
    _draw_line(axes, own, subject, AGENT_COLOR, 2.6, "-")
    spent, low, high = _rising(own)
    axes.fill_between(spent, low, high, color=AGENT_COLOR, alpha=0.13, lw=0)
    named = _draw_experts(axes, alone, top_usd)
    _draw_best(axes, table.experts[reference_experts(table)[0]], best, own, top_usd)
    axes.set_xlim(-0.012 * top_usd, 1.06 * top_usd)
    _limit_score(axes, [own.score, *(results[name].score for name in others)], named)
    axes.xaxis.set_major_formatter(lambda x, _: f"${x:,g}")
    axes.set_xlabel("dollars per 1,000 queries")
    axes.set_ylabel("mean score")
    title = f"{short(table.name, 60)}: what a budget buys, {split} queries"
    axes.set_title(title, fontsize=11, loc="left", color=INK, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.18)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: (labels[i] != subject, not labels[i].startswith("best router")))
    axes.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        fontsize=9,
        loc="lower right",
        frameon=True,
        framealpha=0.9,
        edgecolor="none",
    )
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Writes the figure; names in scripts that the font lacks show as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, dpi=150, format="png")


def _rising(result: Result) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spend per 1,000 queries, rising, and the ends of the 95 % interval of the score."""
    order = result.cost_usd.argsort(kind="stable")
    half = 1.96 * result.stderr[order]
    return 1000 * result.cost_usd[order], result.score[order] - half, result.score[order] + half


def _draw_line(axes: Any, result: Result, label: str, color: str, width: float, style: str) -> None:
    order = result.cost_usd.argsort(kind="stable")
    axes.plot(
        1000 * result.cost_usd[order],
        result.score[order],
        style,
        marker="o",
        ms=3.5,
        lw=width,
        color=color,
        label=label,
    )


def _draw_mixtures(axes: Any, alone: Mapping[str, Result], top_usd: float) -> None:
    """The hull of the experts, level after its last."""
    cost_usd, score = mixtures(list(alone.values()), 0)
    x, y = np.append(1000 * cost_usd, max(top_usd, 1000 * cost_usd[-1])), np.append(score, score[-1])
    axes.plot(x, y, "-", lw=1.4, color=MIXTURE_COLOR, label="best mixture of experts", zorder=1)


def _draw_experts(axes: Any, alone: Mapping[str, Result], top_usd: float) -> np.ndarray:
    """A point for each expert, the most telling ones with their names; returns the scores of these."""
    cost = np.array([1000 * float(one.cost_usd[0]) for one in alone.values()])
    score = np.array([float(one.score[0]) for one in alone.values()])
    axes.plot(cost, score, "D", ms=4.5, color=MIXTURE_COLOR, mec="white", mew=0.6, zorder=2, label="one expert, always")
    names = [name.removeprefix("always ") for name in alone]
    shown: list[int] = []
    spread = max(float(np.ptp(score)), 0.05)
    for k in np.lexsort((cost, -score)):
        apart = [abs(cost[k] - cost[j]) > 0.16 * top_usd or abs(score[k] - score[j]) > 0.07 * spread for j in shown]
        if len(shown) < NAMED and all(apart):
            shown.append(int(k))
    for k in shown:
        right = cost[k] > 0.6 * top_usd
        axes.annotate(
            short(names[k]),
            (cost[k], score[k]),
            xytext=(-6, 5) if right else (7, -9),
            ha="right" if right else "left",
            fontsize=8,
            color="0.35",
            textcoords="offset points",
            parse_math=False,
        )
    return score[shown]


def _draw_best(axes: Any, name: str, best: Result, own: Result, top_usd: float) -> None:
    """The level of the best expert, and where the curve first reaches it."""
    score = float(best.score[0])
    axes.axhline(score, color=INK, lw=0.9, ls=(0, (4, 3)), zorder=1)
    matched = 1000 * matching_cost(own.cost_usd, own.score, score)
    if np.isnan(matched):
        axes.annotate(
            f"the best expert: {score:.3f}, not matched",
            (0, score),
            xytext=(6, 4),
            fontsize=8.5,
            textcoords="offset points",
            color=INK,
            parse_math=False,
        )
        return
    axes.plot([matched], [score], "o", ms=9, mfc="white", mec=AGENT_COLOR, mew=2, zorder=5)
    cost = 1000 * float(best.cost_usd[0])
    share = f", {100 * matched / cost:.0f} % of its cost" if cost > 0 else ""
    axes.annotate(
        f"as good as {short(name)}\nat {dollars(matched)}{share}",
        (matched, score),
        xytext=(14, -34) if matched < 0.6 * top_usd else (-14, -40),
        ha="left" if matched < 0.6 * top_usd else "right",
        fontsize=9,
        color=INK,
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.8},
        bbox={"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8},
        zorder=6,
        parse_math=False,
    )


def _limit_score(axes: Any, lines: list[np.ndarray], named: np.ndarray) -> None:
    """From a little below the least of what matters to a little above the most."""
    values = np.concatenate([*lines, named])
    low, high = float(values.min()), float(values.max())
    margin = max(0.08 * (high - low), 0.01)
    axes.set_ylim(max(low - margin, -0.02), min(high + 1.2 * margin, 1.03))


def short(name: str, letters: int = MOST_LETTERS) -> str:
    """A name that is no longer than that."""
    return name if len(name) <= letters else f"{name[: letters // 2 - 1]}…{name[-(letters // 2 - 1) :]}"
