"""How the agent does on queries it never saw, against every other router: several seeds, pools and horizons.

python benchmarks/held_out.py --table tables/mine --name mine --horizons 64 8 --seeds 5

Each run is `train.py` with its defaults but for the table, the experts, the horizon and the seed, which also decides
the episodes of the evaluation; `--arguments="--max-calls 1"` measures the agent with one call a query. Results are
added to `benchmarks/HELD_OUT.md`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from sections import add_section

from agents.evaluation.metrics import interval
from agents.training import cluster

ROOT = Path(__file__).parents[1]
BAR = "paced kernel ridge"


def main(
    table: str = "tiny",
    name: str = "",
    experts: str = "",
    horizons: tuple[int, ...] = (64, 8),
    seeds: int = 5,
    parallel: int = 2,
    runs: Path = Path("runs/held_out"),
    arguments: str = "",
) -> None:
    """Trains and evaluates, then adds a section to the results for each horizon.

    Args:
        table: table directory or name of a built-in table.
        name: heading of the section; the table's if empty.
        experts: names of the experts to use, separated by commas; all if empty.
        horizons: queries in an episode.
        seeds: how many, from 0.
        parallel: runs at a time; on a cluster, which $RAY_ADDRESS names, as many as it has processors.
        runs: where the runs are written; finished ones are not made again.
        arguments: more of train.py's, such as "--hide-budget".
    """
    name, runs = name or Path(table).name, runs.resolve()
    for horizon in horizons:
        directories = [runs / f"{name}{arguments.replace(' ', '')}-h{horizon}-s{seed}" for seed in range(seeds)]
        common = ["--table", table, "--experts", experts, "--horizon", str(horizon), *arguments.split()]
        commands = [[*common, "--seed", str(seed)] for seed in range(seeds)]
        work = list(zip(commands, directories, strict=True))
        if cluster.is_given():  # whose machines see these directories
            seconds = cluster.map_on_cluster("RAY_ADDRESS", _train, work)
        else:
            with ThreadPoolExecutor(parallel) as pool:
                seconds = list(pool.map(_train, work))
        evaluations = [json.loads((directory / "evaluation.json").read_text()) for directory in directories]
        if experts and any(set(e["experts"]) != set(experts.split(",")) for e in evaluations):
            raise SystemExit(f"error: {runs}: holds runs named {name} of other experts; choose another --name")
        heading = f"{name}, {len(evaluations[0]['experts'])} experts, horizon {horizon} {arguments}".rstrip()
        _add_section(heading, evaluations, [s for s in seconds if s])


def _train(work: tuple[list[str], Path]) -> float:
    """Seconds of the run with these arguments in this directory; 0 where it was there."""
    arguments, run_dir = work
    if (run_dir / "evaluation.json").exists():
        return 0.0
    start = time.perf_counter()
    begun = ["--resume"] if (run_dir / "config.yaml").exists() else []
    command = [sys.executable, str(ROOT / "train.py"), *arguments, *begun, "--run-dir", str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return time.perf_counter() - start


def _add_section(heading: str, evaluations: list[dict[str, Any]], seconds: list[float]) -> None:
    """Replaces the section of that heading, or adds it."""
    text = _table(evaluations, seconds)
    add_section(ROOT / "benchmarks" / "HELD_OUT.md", "# Held-out scores", heading, text)
    print(f"## {heading}\n\n{text}")


def _table(evaluations: list[dict[str, Any]], seconds: list[float]) -> str:
    """Means over the seeds, the agent's lead with a 95 % interval, at each budget and in the mean."""
    budgets = evaluations[0]["budgets_usd"]
    routers = [e["routers"] for e in evaluations]
    names = [name for name in {name: None for each in routers for name in each} if not name.startswith("hindsight")]
    score = {  # [seeds, G]; a seed lacks only the agent with as many calls as the one that it kept
        name: np.array([each.get(name, each["agent"])["score"] for each in routers]) for name in names
    }
    order = sorted(names, key=lambda router: (router != "agent", -score[router].mean()))
    lines = [
        f"Test split, {len(evaluations)} seeds, mean score; the lead of the agent in points, 95 % interval "
        "over seeds (which draw other episodes of the same test queries).",
        "",
        "| dollars per query | " + " | ".join(f"{b:.2g}" for b in budgets) + " | mean | agent's lead |",
        "|---" * (len(budgets) + 3) + "|",
    ]
    for router in order:
        mean, half = interval(100 * (score["agent"] - score[router]).mean(axis=1))
        lead = "" if router == "agent" else f"{mean:+.2f} ± {half:.2f}"
        cells = [f"{s:.3f}" for s in score[router].mean(axis=0)]
        lines.append(f"| {router} | " + " | ".join(cells) + f" | {score[router].mean():.4f} | {lead} |")
    leads = 100 * (score["agent"] - score[BAR]).mean(axis=0)
    stderr = 100 * np.mean([e["routers"]["agent"]["stderr"] for e in evaluations])
    lines += ["", f"Over {BAR} by budget: " + ", ".join(f"{x:+.2f}" for x in leads) + f" points; a score's standard "
              f"error at a budget is {stderr:.2f}."]  # fmt: skip
    if seconds:
        lines += ["", f"A run takes {np.mean(seconds):.0f} s with as many at a time as asked for."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    tyro.cli(main)
