"""The report over several seeds: mean scores with 95 % intervals.

S seeds, G budgets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from agents.evaluation.decision import AGENT
from agents.evaluation.headline import dollars
from agents.evaluation.markdown import table_head, table_line
from agents.evaluation.metrics import interval
from agents.evaluation.stored import Evaluation, read_evaluation
from agents.training.trials import search_section
from leeroo_env.files import write_atomically, write_json, write_text

DRAWN = 4  # routers beside the agent


def write_seeds_report(run_dir: Path, runs: Sequence[Path]) -> None:
    """Writes `seeds.json`, `curve.png` and `report.md` from the `evaluation.json` of the runs, one a seed.

    Intervals are Student's t over seeds, which vary the training and the episodes; the test queries are the same.
    """
    evaluations = [read_evaluation(run) for run in runs]
    first = evaluations[0]
    budgets = first.budgets_usd
    curves = {name: [one.routers.get(name, one.routers[AGENT]) for one in evaluations] for name in _names(evaluations)}
    scores = {name: np.array([curve.score for curve in each]) for name, each in curves.items()}
    costs = {name: np.array([curve.cost_usd for curve in each]) for name, each in curves.items()}
    rows = [_row(name, score, scores[AGENT]) for name, score in _by_score(scores)]
    write_json(
        run_dir / "seeds.json",
        {
            "seeds": [one.seed for one in evaluations],
            "budgets_usd": budgets,
            "scores": {name: score.tolist() for name, score in scores.items()},
        },
    )
    write_atomically(run_dir / "curve.png", lambda file: _curve(scores, costs).savefig(file, format="png", dpi=130))
    head = table_head(["router", "mean score", "agent's lead", *(dollars(1000 * usd) for usd in budgets)])
    text = [
        f"# {first.table}: {len(evaluations)} seeds",
        *_decisions(evaluations),
        f"Seeds {first.seed} to {evaluations[-1].seed}, each an agent with a report of its own in this "
        f"directory; the other routers are fitted once and play each seed's episodes. Scores on the {first.split} "
        f"queries, episodes of {first.horizon}, at each budget in dollars per 1,000 queries; ± is half the 95 % "
        "interval of the mean over seeds. The queries are the same for all: for others, the uncertainty is that of "
        "each report.",
        "\n".join([*head, *rows]),
        "![score over spend](curve.png)",
        *search_section(run_dir),
    ]
    write_text(run_dir / "report.md", "\n\n".join(text) + "\n")


def _names(evaluations: Sequence[Evaluation]) -> list[str]:
    """Of all routers. A seed lacks only the agent with as many calls as the one that it kept, which stands for it."""
    return list(dict.fromkeys(name for one in evaluations for name in one.routers))


def _decisions(evaluations: Sequence[Evaluation]) -> list[str]:
    """What to deploy, how sure that is over the seeds, and what each seed decided; paragraphs."""
    decided = [(one.seed, one.decision) for one in evaluations if one.decision is not None]
    if not decided:
        return []
    most = Counter(decision.deploy for _, decision in decided).most_common(1)[0][0]
    seed, best = max((pair for pair in decided if pair[1].deploy == most), key=lambda pair: pair[1].score_on_val)
    n = sum(decision.deploy == most for _, decision in decided)
    gain, half = interval(np.array([d.training.gain.mean if d.training.gain else 0.0 for _, d in decided]))
    head = ["seed", "deploy", "budget per 1,000 queries", "score", "against", "gained", "saved", "PPO added"]
    undecided = any(decision.training.calls for _, decision in decided)
    lines = table_head([*head, *(["calls a query"] if undecided else [])])
    for number, decision in decided:
        deployed, *others = decision.rows
        against = next((row for row in others if row.name.startswith("always ")), None)
        cells = [str(number), decision.deploy, dollars(decision.budget_usd_per_1000_queries)]
        cells += [f"{deployed.score.mean:.3f}", against.name if against else ""]
        cells += [f"{against.lead.mean:+.3f}" if against and against.lead else ""]
        cells += [f"{100 * against.saved.mean:.0f} %" if against and against.saved else ""]
        cells += [f"{100 * (decision.training.gain.mean if decision.training.gain else 0):+.2f} points"]
        calls = decision.training.calls
        cells += [("several" if calls.several else "one") if calls else ""] if undecided else []
        lines.append(table_line(cells))
    spread = "" if np.isnan(half) else f" ± {100 * half:.2f}"
    return [
        f"**Deploy {most} with {dollars(best.budget_usd_per_1000_queries)} per 1,000 queries, as in seed {seed}**, "
        f"the best on val of the {n} of {len(decided)} seeds that chose so; its `report.md` says how, and how sure its "
        f"numbers are. Training added {100 * gain:+.2f}{spread} points to its start, mean over seeds and budgets.",
        "\n".join(lines),
    ]


def _halves(values: np.ndarray) -> list[float]:
    """Half the width of the 95 % interval of the mean over seeds, by budget, from [S, G]; NaN for one seed."""
    return [interval(column)[1] for column in values.T]


def _by_score(scores: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """The agent, then the others from the best to the worst."""
    return sorted(scores.items(), key=lambda item: (item[0] != AGENT, -item[1].mean()))


def _row(name: str, score: np.ndarray, agent: np.ndarray) -> str:
    cells = [f"{m:.4f} ± {h:.4f}" for m, h in zip(score.mean(axis=0), _halves(score), strict=True)]
    mean, lead = (interval(one) for one in (score.mean(axis=1), (agent - score).mean(axis=1)))
    lead_cell = "" if name == AGENT else f"{lead[0]:+.4f} ± {lead[1]:.4f}"
    return table_line([name, f"{mean[0]:.4f} ± {mean[1]:.4f}", lead_cell, *cells])


def _curve(scores: dict[str, np.ndarray], costs: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    shown = [name for name, _ in _by_score(scores) if not name.startswith("hindsight")][: DRAWN + 1]
    for name in shown:
        width, above = (2.4, 3) if name == AGENT else (1.2, 2)
        mean, spend, half = scores[name].mean(axis=0), costs[name].mean(axis=0), np.array(_halves(scores[name]))
        color = "C3" if name == AGENT else ["C0", "C1", "C2", "C4", "C5"][shown.index(name) % 5]
        spend = 1000 * spend
        axes.plot(spend, mean, "o-", ms=4, label=name, color=color, lw=width, zorder=above)
        axes.fill_between(spend, mean - half, mean + half, color=color, alpha=0.15, lw=0)
    axes.set(xlabel="dollars per 1,000 queries", ylabel="mean score")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
