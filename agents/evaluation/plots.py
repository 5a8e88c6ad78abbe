"""Plots of an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from agents.evaluation.evaluate import Result
from leeroo_env.dynamics import Rules

AGENT = "agent"
DRAWN = 4  # routers beside the agent


def draw_curve(rules: Rules, split: str, results: dict[str, Result], bounds: dict[str, Result] | None = None) -> Figure:
    """Score over spend of the agent and the best other routers, with a band of one standard error; experts are points,
    bounds dashed lines."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    colors = iter(["C0", "C1", "C2", "C4", "C5", "C6", "C8", "C9"])
    for name in _drawn(results):
        agent = {"lw": 2.4, "color": "C3", "zorder": 3}
        style: dict[str, Any] = agent if name == AGENT else {"lw": 1.2, "color": next(colors)}
        result = results[name]
        (line,) = axes.plot(result.cost_usd, result.score, "o-", ms=4, label=name, **style)
        low, high = result.score - result.stderr, result.score + result.stderr
        axes.fill_between(result.cost_usd, low, high, color=line.get_color(), alpha=0.12, lw=0)
    for (name, bound), dash in zip((bounds or {}).items(), ("--", ":"), strict=False):
        axes.plot(bound.cost_usd, bound.score, dash, color="0.5", lw=1.2, label=name)
    _draw_experts(axes, rules, split)
    axes.set_xlabel("dollars per query")
    axes.set_ylabel("mean score")
    axes.set_title(f"{rules.table.name}, {split} split, horizon {rules.horizon}", fontsize=10, parse_math=False)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="best")
    return figure


def _drawn(results: dict[str, Result]) -> list[str]:
    """The routers to draw: the agent, the best others, and the best that ignores the query."""
    others = sorted((name for name in results if name != AGENT), key=lambda name: -results[name].mean_score)
    last = [name for name in ("best mixture",) if name in results and name not in others[: DRAWN - 1]]
    return [*[AGENT] * (AGENT in results), *others[: DRAWN - len(last)], *last]


def _draw_experts(axes: Any, rules: Rules, split: str) -> None:
    cost = rules.table.mean_cost_usd(split).cpu().numpy()
    score = rules.table.mean_score(split).cpu().numpy()
    axes.plot(cost, score, "x", color="0.45", ms=5, label="one expert, always")
    for i in dict.fromkeys([*np.argsort(-score)[:3].tolist(), int(cost.argmin())]):
        left = cost[i] < np.sqrt(cost.min() * cost.max())
        axes.annotate(
            rules.table.experts[i],
            (cost[i], score[i]),
            xytext=(5, -8) if left else (-5, 4),
            ha="left" if left else "right",
            fontsize=7,
            color="0.35",
            textcoords="offset points",
            parse_math=False,
        )
    if cost.min() > 0 and cost.max() > 0:
        axes.set_xscale("log")
