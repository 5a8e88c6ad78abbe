"""What a run shows when it has ended: `evaluation.json`, `curve.png`, `report.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from agents.evaluate import Result, summary
from agents.files import write_atomically, write_json, write_text
from leeroo_env.dynamics import Rules


def write_report(
    run_dir: Path, rules: Rules, split: str, seed: int, budgets_usd: list[float], results: dict[str, Result], notes: str
) -> None:
    """Writes the three files of an evaluation. `results` by router name, the agent's as "agent"."""
    figure = draw_curve(rules, split, results)
    write_atomically(run_dir / "curve.png", lambda path: figure.savefig(path, dpi=150, format="png"))
    write_text(run_dir / "report.md", _markdown(rules, split, budgets_usd, results, notes))
    write_json(run_dir / "evaluation.json", summary(rules, split, seed, budgets_usd, results))


def draw_curve(rules: Rules, split: str, results: dict[str, Result]) -> Figure:
    """Score over spend of each router, one standard error as a band, with every expert as a point."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    colors = iter(["C0", "C1", "C2", "C4", "C5", "C6", "C8", "C9"] * len(results))
    for name, result in results.items():
        agent = {"lw": 2.4, "color": "C3", "zorder": 3}
        style: dict[str, Any] = agent if name == "agent" else {"lw": 1.2, "color": next(colors)}
        (line,) = axes.plot(result.cost_usd, result.score, "o-", ms=4, label=name, **style)
        low, high = result.score - result.stderr, result.score + result.stderr
        axes.fill_between(result.cost_usd, low, high, color=line.get_color(), alpha=0.12, lw=0)
    cost = rules.table.mean_cost_usd(split).cpu().numpy()
    score = rules.table.mean_score(split).cpu().numpy()
    axes.plot(cost, score, "x", color="0.45", ms=5, label="one expert, always")
    for i in dict.fromkeys([*np.argsort(-score)[:3].tolist(), int(cost.argmin())]):
        place: dict[str, Any] = (
            {"xytext": (5, -8)} if cost[i] < np.sqrt(cost.min() * cost.max()) else {"xytext": (-5, 4)}
        )
        place["ha"] = "left" if place["xytext"][0] > 0 else "right"
        label = rules.table.experts[i]
        axes.annotate(
            label, (cost[i], score[i]), fontsize=7, color="0.35", textcoords="offset points", parse_math=False, **place
        )
    if cost.min() > 0 and cost.max() > 0:
        axes.set_xscale("log")
    axes.set_xlabel("dollars per query")
    axes.set_ylabel("mean score")
    axes.set_title(f"{rules.table.name}, {split} split, horizon {rules.horizon}", fontsize=10, parse_math=False)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def _markdown(rules: Rules, split: str, budgets_usd: list[float], results: dict[str, Result], notes: str) -> str:
    table = rules.table
    best = max((name for name in results if name != "agent"), key=lambda name: results[name].mean_score)
    agent, other = results["agent"].mean_score, results[best].mean_score
    lines = [
        f"# {table.name}: {len(table.experts)} experts, {split} split",
        "",
        table.info.description,
        "",
        f"Over the {len(budgets_usd)} budgets the agent's mean score is {agent:.4f}, {abs(agent - other):.4f} "
        f"{'above' if agent >= other else 'below'} that of the best other router ({best}, {other:.4f}).",
        "",
        "![score over spend](curve.png)",
        "",
        "## Score per query by budget",
        "",
        f"Mean over the same episodes of {rules.horizon} queries for every router, ± one standard error (by query).",
        "",
        _rows(["dollars per query", *(f"{b:.3g}" for b in budgets_usd), "mean"], results, _scores),
        "",
        "## Spend per query by budget, in dollars",
        "",
        _rows(["budget", *(f"{b:.3g}" for b in budgets_usd)], results, lambda r: [f"{c:.3g}" for c in r.cost_usd]),
        "",
        "## Whom the agent asks",
        "",
        _rows(
            ["expert", *(f"{b:.3g}" for b in budgets_usd)],
            dict(zip(table.experts, results["agent"].calls.T, strict=True)),
            lambda share: [f"{100 * s:.0f} %" for s in share],
        ),
        "",
        f"Refused calls of the agent: {100 * results['agent'].refused.mean():.2f} %.",
        "",
        *_experts(rules, split),
        "",
        notes,
    ]
    return "\n".join(lines) + "\n"


def _experts(rules: Rules, split: str) -> list[str]:
    """What each expert scores and costs by itself, by domain where there are few."""
    table, rows = rules.table, rules.table.rows(split)
    scores = table.scores[rows].cpu().numpy()
    oracle = float(scores.max(axis=1).mean())
    domain = np.array(table.queries["domain"].take(pa.array(rows.cpu().numpy())).to_pylist())
    domains = sorted(set(domain.tolist()))
    shown = domains if 1 < len(domains) <= 20 else []
    cost = table.mean_cost_usd(split).tolist()
    cells = {
        name: [f"{cost[k]:.3g}", f"{scores[:, k].mean():.3f}", *(f"{scores[domain == d, k].mean():.2f}" for d in shown)]
        for k, name in enumerate(table.experts)
    }
    return [
        "## The experts by themselves",
        "",
        _rows(["expert", "dollars per query", "score", *map(_cell, shown)], cells, lambda row: row),
        "",
        f"Whoever always knew which expert is right, whatever it costs, would score {oracle:.3f}.",
    ]


def _scores(result: Result) -> list[str]:
    cells = [f"{s:.3f} ± {e:.3f}" for s, e in zip(result.score, result.stderr, strict=True)]
    return [*cells, f"{result.mean_score:.4f}"]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _rows(header: list[str], rows: dict[str, Any], cells: Any) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join(lines + ["| " + " | ".join([_cell(name), *cells(row)]) + " |" for name, row in rows.items()])
