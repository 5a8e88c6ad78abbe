"""What self-play buys: the loop, the same money spent on asking everyone, and the agent of the full table.

python benchmarks/selfplay.py --seeds 5

Live on the shipped pool. Each run begins with 300 training queries of the shipped table that all experts have
answered; both ways of asking then get the same dollars, writers and learning. All agents are evaluated on the shipped
table's test split, once, after all is learnt. Results go to `benchmarks/SELFPLAY.md` and `benchmarks/selfplay.png`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro
from matplotlib.figure import Figure

from agents.evaluation.metrics import interval
from agents.selfplay.config import Config
from agents.selfplay.context import seed_queries
from agents.selfplay.loop import run
from experts.collect.store import read_parts
from leeroo_env.files import read_json, write_json

ROOT = Path(__file__).parents[1]
WAYS = {
    "aimed": "self-play: the answers that are worth their cost",
    "all": "every expert, random new queries",
    "full": "the full table: every expert, all 3,566 training queries",
}


def main(
    seeds: int = 5, rounds: int = 3, usd_per_round: float = 0.012, runs: Path = Path("runs/selfplay_benchmark")
) -> None:
    """Makes what runs are missing and writes the results.

    Args:
        seeds: how many, from 0; each draws other queries to begin with.
        rounds: of both ways of asking.
        usd_per_round: dollars.
        runs: where the runs are written; finished ones are not made again.
    """
    for seed in range(seeds):
        for way in WAYS:
            _play(way, seed, rounds, usd_per_round, runs)
    tests = {way: [read_json(runs / f"{way}-{seed}" / "test.json") for seed in range(seeds)] for way in WAYS}
    played = {way: [_rounds(runs / f"{way}-{seed}") for seed in range(seeds)] for way in WAYS}
    (ROOT / "benchmarks" / "SELFPLAY.md").write_text("\n".join(_report(tests, played, runs)) + "\n")
    _draw(tests, played).savefig(ROOT / "benchmarks" / "selfplay.png", dpi=150)


def _play(way: str, seed: int, rounds: int, usd_per_round: float, runs: Path) -> None:
    """One run. What val and test were answered, which all runs need, is taken over from the first."""
    directory, first = runs / f"{way}-{seed}", runs / "aimed-0"
    if (directory / "seconds.json").exists():
        return
    if first.exists() and directory != first and not (directory / "store").exists():
        _take_over(first / "store", directory / "store")
    config = Config(seed=seed, rounds=rounds, usd_per_round=usd_per_round, run_dir=directory)
    if way == "all":
        config = replace(config, ask="all")
    if way == "full":
        config = replace(config, start=0, rounds=0)
    start = time.perf_counter()
    run(config)
    write_json(directory / "seconds.json", {"seconds": time.perf_counter() - start})


def _take_over(store: Path, new: Path) -> None:
    held_out, _ = seed_queries(Config())
    rows = read_parts(store)
    rows = rows.filter(pc.is_in(rows["query_id"], pa.array([query.query_id for query in held_out])))
    new.mkdir(parents=True)
    pq.write_table(rows, new / "000000.parquet")


def _rounds(directory: Path) -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted(directory.glob("rounds/*/round.json"))]


def _report(
    tests: dict[str, list[dict[str, Any]]], played: dict[str, list[list[dict[str, Any]]]], runs: Path
) -> list[str]:
    """The results as Markdown."""
    seeds, budgets = len(tests["aimed"]), played["aimed"][0][0]["budgets_usd"]
    final = {way: np.array([test["mean"][-1] for test in tests[way]]) for way in WAYS}
    first = np.array([test["mean"][0] for test in tests["aimed"]])
    usd = {way: np.mean([sum(one["spent_usd"] for one in rounds) for rounds in played[way]]) for way in WAYS}
    answers = {way: np.mean([sum(rounds[-1]["answers"].values()) for rounds in played[way]]) for way in WAYS}
    seconds = [
        read_json(runs / f"{way}-{s}" / "seconds.json")["seconds"] for way in ("aimed", "all") for s in range(seeds)
    ]
    lines = [
        "# Self-play",
        "",
        f"Live on the shipped pool, {seeds} seeds, {len(played['aimed'][0]) - 1} rounds after 300 queries that all "
        "experts answered; mean score over six budgets on the shipped table's test split, evaluated once after the "
        "last round. "
        "Intervals are 95 % over seeds, which draw other queries to begin with and other episodes.",
        "",
        "| what is asked | dollars | training answers | test score | against asking everyone, points |",
        "|---|---|---|---|---|",
        f"| the 300 queries to begin with | {np.mean([rounds[0]['spent_usd'] for rounds in played['aimed']]):.4f} "
        f"| 1500 | {_cell(first)} | {_difference(first, final['all'])} |",
    ]
    for way, name in WAYS.items():
        against = "" if way == "all" else _difference(final[way], final["all"])
        lines.append(f"| {name} | {usd[way]:.4f} | {answers[way]:.0f} | {_cell(final[way])} | {against} |")
    gap = final["full"].mean() - first.mean()
    shares = {way: 100 * (final[way].mean() - first.mean()) / gap for way in ("aimed", "all")}
    lines += [
        "",
        f"Of what the full table gains over the first 300 queries, self-play gains {shares['aimed']:.0f} % at "
        f"{100 * usd['aimed'] / usd['full']:.0f} % of its price; asking everyone gains {shares['all']:.0f} %.",
        "",
        "![score over dollars](selfplay.png)",
        "",
        "By seed: " + "; ".join(f"{w} " + ", ".join(f"{x:.4f}" for x in final[w]) for w in WAYS) + ".",
        "",
        "| dollars per query | " + " | ".join(f"{budget:.2g}" for budget in budgets) + " |",
        "|---" * (len(budgets) + 1) + "|",
    ]
    for way in WAYS:
        score = np.array([test["score"][-1] for test in tests[way]]).mean(axis=0)
        lines.append(f"| {way} | " + " | ".join(f"{x:.3f}" for x in score) + " |")
    lines += [
        "",
        f"A run of self-play or its rival takes {np.mean(seconds):.0f} s on two cores that others use as well.",
    ]
    return lines


def _cell(values: np.ndarray) -> str:
    mean, half = interval(values)
    return f"{mean:.4f} ± {half:.4f}"


def _difference(values: np.ndarray, others: np.ndarray) -> str:
    mean, half = interval(100 * (values - others))
    return f"{mean:+.2f} ± {half:.2f}"


def _draw(tests: dict[str, list[dict[str, Any]]], played: dict[str, list[list[dict[str, Any]]]]) -> Figure:
    """Test score over dollars, every seed thin and the mean thick; the full table as a line across."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for way, colour in (("aimed", "C3"), ("all", "C0")):
        usd = np.array([np.cumsum([one["spent_usd"] for one in rounds]) for rounds in played[way]])
        score = np.array([test["mean"] for test in tests[way]])
        axes.plot(usd.T, score.T, "-", color=colour, lw=0.7, alpha=0.35)
        axes.plot(usd.mean(axis=0), score.mean(axis=0), "o-", color=colour, lw=2.2, label=WAYS[way])
    full = np.mean([test["mean"][-1] for test in tests["full"]])
    spent_usd = np.mean([rounds[-1]["spent_usd"] for rounds in played["full"]])
    axes.axhline(full, color="0.4", ls="--", lw=1.2, label=f"{WAYS['full']} (${spent_usd:.2f})")
    axes.set_xlabel("dollars for training answers")
    axes.set_ylabel("test score, mean over six budgets")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    tyro.cli(main)
