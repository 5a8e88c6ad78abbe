"""What a self-play run shows: `report.md`, `learning.png` and TensorBoard."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from agents.evaluation.markdown import table_head, table_line
from leeroo_env.files import write_atomically, write_text


def log_round(run_dir: Path, numbers: dict[str, Any], total_usd: float) -> None:
    """Adds a round to TensorBoard; `total_usd` is what training answers and writing have cost up to its end."""
    step = numbers["round"]
    with SummaryWriter(str(run_dir), purge_step=step) as writer:
        writer.add_scalar("held_out/score", numbers["val"]["mean"], step)
        writer.add_scalar("money/total_usd", total_usd, step)
        writer.add_scalar("held_out/score_by_microdollar", numbers["val"]["mean"], round(1e6 * total_usd))
        for budget, score in zip(numbers["budgets_usd"], numbers["val"]["score"], strict=True):
            writer.add_scalar(f"held_out/score_at_usd_{budget:.3g}", score, step)
        writer.add_scalar("money/round_usd", numbers["spent_usd"], step)
        writer.add_scalar("money/votes_usd", numbers["votes_usd"], step)
        if numbers["agreement"]["settled"]:
            writer.add_scalar("queries/agreement", numbers["agreement"]["mean"], step)
        if numbers["explored"]["answers"]:
            writer.add_scalar("live/score", numbers["explored"]["score"], step)
            writer.add_scalar("live/cost_usd", numbers["explored"]["cost_usd"], step)
        writer.add_scalar("queries/kept", numbers["written"]["kept"], step)
        for reason, count in numbers["written"]["dropped"].items():
            writer.add_scalar(f"queries/dropped/{reason}", count, step)
        for domain, answers in numbers["coverage"].items():
            writer.add_scalar(f"answers/{domain or 'no domain'}", sum(answers.values()), step)
        for expert, found in numbers["drift"].items():
            writer.add_scalar(f"drift/{expert}_score_z", found["score_z"], step)
            writer.add_scalar(f"drift/{expert}_cost_z", found["cost_z"], step)


def write_selfplay_report(run_dir: Path, rounds: list[dict[str, Any]], test: dict[str, Any], notes: str) -> None:
    """Writes `report.md` and `learning.png`.

    Args:
        run_dir: where to.
        rounds: what `round.json` holds of each.
        test: `test.json`: score by round and budget; empty where there is no test split.
        notes: the last paragraph.
    """
    figure = draw_learning(rounds, test)
    write_atomically(run_dir / "learning.png", lambda path: figure.savefig(path, dpi=150, format="png"))
    held_out = test or {
        "score": [one["val"]["score"] for one in rounds],
        "mean": [one["val"]["mean"] for one in rounds],
    }
    split, total_usd = "test" if test else "val", total(rounds)
    text = [
        f"# Self-play: {len(rounds) - 1} round{'s' * (len(rounds) != 2)}, ${total_usd[-1]:.4g}",
        "",
        _headline(held_out["mean"], total_usd, split),
        "",
        "![score over dollars](learning.png)",
        "",
        "## Held-out score by round",
        "",
        f"Mean score per query on the {split} split at each budget, dollars a query. The other dollars are for "
        "training answers and writing, summed up; what val and test cost stands below.",
        "",
        *_scores(rounds, held_out, total_usd),
        "",
        "## Queries and answers",
        "",
        *_queries(rounds),
        "",
        *_coverage(rounds[-1]),
        "",
        "## Experts that changed",
        "",
        *_drift(rounds),
        "",
        f"Measuring cost ${sum(one['measured_usd'] for one in rounds) + test.get('measured_usd', 0.0):.4g} besides: "
        "every expert's answers on val and test.",
        "",
        notes,
    ]
    write_text(run_dir / "report.md", "\n".join(text) + "\n")


def total(rounds: list[dict[str, Any]]) -> list[float]:
    """Dollars up to the end of each round."""
    return np.cumsum([one["spent_usd"] for one in rounds]).tolist()


def draw_learning(rounds: list[dict[str, Any]], test: dict[str, Any]) -> Figure:
    """Held-out score over the dollars spent by then: the mean over the budgets, and the gain at each."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    usd = total(rounds)
    left.plot(usd, [one["val"]["mean"] for one in rounds], "o--", color="0.5", lw=1.2, ms=4, label="val")
    if test:
        left.plot(usd, test["mean"], "o-", color="C3", lw=2, ms=5, label="test")
    score = np.array(test["score"] if test else [one["val"]["score"] for one in rounds])  # [rounds, budgets]
    for i, budget in enumerate(rounds[0]["budgets_usd"]):
        right.plot(usd, 100 * (score[:, i] - score[0, i]), "o-", ms=3, lw=1.2, label=f"${budget:.2g} a query")
    left.set_ylabel("mean score over the budgets")
    right.set_ylabel("points above round 0")
    for axes in (left, right):
        axes.set_xlabel("dollars for training answers")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    return figure


def _headline(mean: list[float], usd: list[float], split: str) -> str:
    gain, more_usd = 100 * (mean[-1] - mean[0]), usd[-1] - usd[0]
    if len(mean) == 1:
        return f"The agent that the first answers make scores {mean[0]:.4f} on {split}, for ${usd[0]:.4g}."
    return (
        f"The agent's mean score over the budgets went from {mean[0]:.4f} to {mean[-1]:.4f} on {split}: {gain:+.2f} "
        f"points for ${more_usd:.4g} more."
    )


def _scores(rounds: list[dict[str, Any]], held_out: dict[str, Any], usd: list[float]) -> list[str]:
    budgets = [f"{budget:.3g}" for budget in rounds[0]["budgets_usd"]]
    lines = table_head(["round", "dollars", *budgets, "mean", "agent"])
    for i, one in enumerate(rounds):
        agent = "new" if one["kept"] else "the last one kept"
        if one["kept"] and one["training_helped"]:
            agent = "new, trained on by PPO"
        scores = [f"{score:.3f}" for score in held_out["score"][i]]
        lines.append(table_line([str(i), f"{usd[i]:.4g}", *scores, f"{held_out['mean'][i]:.4f}", agent]))
    return lines


def _queries(rounds: list[dict[str, Any]]) -> list[str]:
    dropped: Counter[str] = Counter()
    for one in rounds:
        dropped.update(one["written"]["dropped"])
    reasons = [reason for reason, count in sorted(dropped.items()) if count]
    because = (f"dropped: {reason}" for reason in reasons)
    lines = table_head(["round", "dollars", "queries kept", *because, "answers", "live score"])
    for one in rounds:
        counts = [str(one["written"]["dropped"].get(reason, 0)) for reason in reasons]
        kept = str(one["written"]["kept"])
        lines.append(
            table_line([str(one["round"]), f"{one['spent_usd']:.4g}", kept, *counts, str(one["answered"]), _live(one)])
        )
    lines += ["", "The live score is that of the agent's own choices on new queries, at budgets of all sizes."]
    return lines + _agreed(rounds)


def _agreed(rounds: list[dict[str, Any]]) -> list[str]:
    """What stands behind the references that experts gave; nothing where programs wrote all questions."""
    if not any(one["votes_usd"] or one["agreement"]["settled"] for one in rounds):
        return []
    lines = table_head(["round", "dollars for writing", "dollars for votes", "settled", "mean agreement"])
    for one in rounds[1:]:
        usd = f"{one['writing_usd']:.4g}", f"{one['votes_usd']:.4g}"
        lines.append(
            table_line([str(one["round"]), *usd, str(one["agreement"]["settled"]), f"{one['agreement']['mean']:.2f}"])
        )
    told = (
        "Questions that models wrote and experts settled. These are the easier ones, so the live score flatters here:"
    )
    return ["", told, "", *lines]


def _live(one: dict[str, Any]) -> str:
    found = one["explored"]
    return f"{found['score']:.3f} ({found['answers']} answers)" if found["answers"] else ""


def _coverage(last: dict[str, Any]) -> list[str]:
    experts = list(last["answers"])
    lines = ["Training answers by domain:", "", *table_head(["domain", *experts])]
    for domain, answers in last["coverage"].items():
        lines.append(table_line([domain or "-", *(str(answers[name]) for name in experts)]))
    return [*lines, table_line(["all", *(str(last["answers"][name]) for name in experts)])]


def _drift(rounds: list[dict[str, Any]]) -> list[str]:
    """Every fresh answer against what was foretold."""
    if len(rounds) == 1:
        return ["No round has been played yet."]
    lines = [
        "Fresh answers against what the last agent foretold: mean score above it, mean cost over it, each with its "
        "number of standard errors. An expert that changed loses its earlier answers.",
        "",
        *table_head(["round", "expert", "answers", "score", "cost", "changed"]),
    ]
    for one in rounds[1:]:
        for name, found in one["drift"].items():
            score = f"{found['score']:+.3f} ({found['score_z']:+.1f})"
            cost = f"{100 * np.expm1(found['cost']):+.0f} % ({found['cost_z']:+.1f})"
            changed = "**yes**" if found["changed"] else ""
            lines.append(table_line([str(one["round"]), name, str(found["answers"]), score, cost, changed]))
    return lines
