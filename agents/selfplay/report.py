"""Reports a self-play run: `report.md`, `learning.png`, TensorBoard, and one line per round."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from agents.evaluation.markdown import table_head, table_line
from agents.selfplay.records import FinalTest, LiveScore, Round
from leeroo_env.files import write_atomically, write_text


def describe(one: Round) -> str:
    """A round in one line."""
    changed = f", changed: {', '.join(one.changed)}" if one.changed else ""
    return (
        f"round {one.round}: ${one.spent_usd:.6f} for {one.answered} answers, "
        f"val {one.val.mean:.4f}{'' if one.kept else ' (last agent kept)'}{changed}"
    )


def log_round(run_dir: Path, one: Round, total_usd: float) -> None:
    """Adds a round to TensorBoard; `total_usd` is the cost of training answers and writing up to its end."""
    step = one.round
    with SummaryWriter(str(run_dir), purge_step=step) as writer:
        writer.add_scalar("held_out/score", one.val.mean, step)
        writer.add_scalar("money/total_usd", total_usd, step)
        writer.add_scalar("held_out/score_by_microdollar", one.val.mean, round(1e6 * total_usd))
        for budget, score in zip(one.budgets_usd, one.val.score, strict=True):
            writer.add_scalar(f"held_out/score_at_usd_{budget:.3g}", score, step)
        writer.add_scalar("money/round_usd", one.spent_usd, step)
        writer.add_scalar("money/votes_usd", one.votes_usd, step)
        if one.agreement.settled:
            writer.add_scalar("queries/agreement", one.agreement.mean, step)
        if one.explored.answers:
            writer.add_scalar("live/score", one.explored.score, step)
            writer.add_scalar("live/cost_usd", one.explored.cost_usd, step)
        writer.add_scalar("queries/kept", one.written.kept, step)
        for reason, count in one.written.dropped.items():
            writer.add_scalar(f"queries/dropped/{reason}", count, step)
        for domain, answers in one.coverage.items():
            writer.add_scalar(f"answers/{domain or 'no domain'}", sum(answers.values()), step)
        for expert, drift in one.drift.items():
            writer.add_scalar(f"drift/{expert}_score_z", drift.score_z, step)
            writer.add_scalar(f"drift/{expert}_cost_z", drift.cost_z, step)


def write_selfplay_report(run_dir: Path, rounds: list[Round], test: FinalTest | None, notes: str) -> None:
    """Writes `report.md` and `learning.png`.

    Args:
        run_dir: the directory of the run.
        rounds: all rounds.
        test: scores on test; None where there is no test split: then those on val are reported.
        notes: the last paragraph.
    """
    figure = draw_learning(rounds, test)
    write_atomically(run_dir / "learning.png", lambda path: figure.savefig(path, dpi=150, format="png"))
    split = "test" if test else "val"
    score = test.score if test else [one.val.score for one in rounds]
    mean = test.mean if test else [one.val.mean for one in rounds]
    measured_usd = sum(one.measured_usd for one in rounds) + (test.measured_usd if test else 0.0)
    usd = total_usd(rounds)
    text = [
        f"# Self-play: {len(rounds) - 1} round{'s' * (len(rounds) != 2)}, ${usd[-1]:.4g}",
        "",
        _headline(mean, usd, split),
        "",
        "![score over dollars](learning.png)",
        "",
        "## Held-out score by round",
        "",
        f"Mean score per query on the {split} split at each budget, in dollars per query. The column `dollars` is the "
        "cumulative cost of training answers and writing; the cost of answers on val and test is given below.",
        "",
        *_scores(rounds, score, mean, usd),
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
        f"Measurement cost another ${measured_usd:.4g}: every expert's answers on val and test.",
        "",
        notes,
    ]
    write_text(run_dir / "report.md", "\n".join(text) + "\n")


def total_usd(rounds: list[Round]) -> list[float]:
    """Cost of training answers and writing up to the end of each round, in dollars."""
    return np.cumsum([one.spent_usd for one in rounds]).tolist()


def draw_learning(rounds: list[Round], test: FinalTest | None) -> Figure:
    """Held-out score over cumulative dollars: the mean over the budgets, and the gain at each budget."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    usd = total_usd(rounds)
    left.plot(usd, [one.val.mean for one in rounds], "o--", color="0.5", lw=1.2, ms=4, label="val")
    if test:
        left.plot(usd, test.mean, "o-", color="C3", lw=2, ms=5, label="test")
    score = np.array(test.score if test else [one.val.score for one in rounds])  # [rounds, budgets]
    for i, budget in enumerate(rounds[0].budgets_usd):
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
        return f"The agent trained on the first answers scores {mean[0]:.4f} on {split}, for ${usd[0]:.4g}."
    return (
        f"The agent's mean score over the budgets went from {mean[0]:.4f} to {mean[-1]:.4f} on {split}: {gain:+.2f} "
        f"points for ${more_usd:.4g} more."
    )


def _scores(rounds: list[Round], score: list[list[float]], mean: list[float], usd: list[float]) -> list[str]:
    budgets = [f"{budget:.3g}" for budget in rounds[0].budgets_usd]
    lines = table_head(["round", "dollars", *budgets, "mean", "agent"])
    for i, one in enumerate(rounds):
        agent = "last one kept" if not one.kept else "new, improved by PPO" if one.training_helped else "new"
        scores = [f"{value:.3f}" for value in score[i]]
        lines.append(table_line([str(i), f"{usd[i]:.4g}", *scores, f"{mean[i]:.4f}", agent]))
    return lines


def _queries(rounds: list[Round]) -> list[str]:
    dropped: Counter[str] = Counter()
    for one in rounds:
        dropped.update(one.written.dropped)
    reasons = [reason for reason, count in sorted(dropped.items()) if count]
    columns = (f"dropped: {reason}" for reason in reasons)
    lines = table_head(["round", "dollars", "queries kept", *columns, "answers", "live score"])
    for one in rounds:
        counts = [str(one.written.dropped.get(reason, 0)) for reason in reasons]
        cells = [str(one.round), f"{one.spent_usd:.4g}", str(one.written.kept), *counts]
        lines.append(table_line([*cells, str(one.answered), _live(one.explored)]))
    lines += ["", "The live score is that of the agent's own choices on new queries, at budgets of all sizes."]
    return lines + _agreement(rounds)


def _agreement(rounds: list[Round]) -> list[str]:
    """The votes behind references; nothing where programs wrote all questions."""
    if not any(one.votes_usd or one.agreement.settled for one in rounds):
        return []
    lines = table_head(["round", "dollars for writing", "dollars for votes", "settled", "mean agreement"])
    for one in rounds[1:]:
        usd = f"{one.writing_usd:.4g}", f"{one.votes_usd:.4g}"
        lines.append(table_line([str(one.round), *usd, str(one.agreement.settled), f"{one.agreement.mean:.2f}"]))
    note = (
        "Questions written by models whose reference was voted on by experts. These are easier than average, so the "
        "live score is too high here:"
    )
    return ["", note, "", *lines]


def _live(explored: LiveScore) -> str:
    return f"{explored.score:.3f} ({explored.answers} answers)" if explored.answers else ""


def _coverage(last: Round) -> list[str]:
    experts = list(last.answers)
    lines = ["Training answers by domain:", "", *table_head(["domain", *experts])]
    for domain, answers in last.coverage.items():
        lines.append(table_line([domain or "-", *(str(answers[name]) for name in experts)]))
    return [*lines, table_line(["all", *(str(last.answers[name]) for name in experts)])]


def _drift(rounds: list[Round]) -> list[str]:
    if len(rounds) == 1:
        return ["No round has been played yet."]
    lines = [
        "New answers against the last agent's predictions: mean score minus prediction, mean cost relative to it, each "
        "with its number of standard errors. The earlier answers of an expert that changed are discarded.",
        "",
        *table_head(["round", "expert", "answers", "score", "cost", "changed"]),
    ]
    for one in rounds[1:]:
        for name, drift in one.drift.items():
            score = f"{drift.score:+.3f} ({drift.score_z:+.1f})"
            cost = f"{100 * np.expm1(drift.cost):+.0f} % ({drift.cost_z:+.1f})"
            changed = "**yes**" if drift.changed else ""
            lines.append(table_line([str(one.round), name, str(drift.answers), score, cost, changed]))
    return lines
