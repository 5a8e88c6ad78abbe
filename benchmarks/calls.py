"""What asking several experts about a query gains over asking one, on queries that neither agent has seen.

python benchmarks/calls.py --table tables/mine --name mine --horizons 64 8 --seeds 5

The agents are trained as `train.py` does by default, from the same estimates: with one call, with several, and with
several whose evidence (what a call tells of its answer) is hidden. They play the same episodes of the test split, at
the budgets of a report and at shares of the most expensive expert's mean cost. So do the routers that ask several
experts. Results are added to `benchmarks/CALLS.md`.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from sections import add_section

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agents.estimators.ensemble import fit_predictor  # noqa: E402
from agents.evaluation.evaluate import episodes_for, evaluate, lead  # noqa: E402
from agents.evaluation.metrics import interval  # noqa: E402
from agents.routers import Cheapest, Router  # noqa: E402
from agents.routers.policy import PolicyRouter  # noqa: E402
from agents.training.config import TrainConfig  # noqa: E402
from agents.training.trainer import Trainer  # noqa: E402
from leeroo_env.builtin import resolve  # noqa: E402
from leeroo_env.dynamics import Rules, budget_grid  # noqa: E402

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)  # of the highest mean cost of an expert: where the lead is counted
OTHER_SHARES = (0.75, 0.8, 0.9, 1.0)
GRID = slice(0, -len(SHARES + OTHER_SHARES))  # the budgets of a report
AT_SHARES = slice(-len(SHARES + OTHER_SHARES), -len(OTHER_SHARES))
ONE, BLIND, MANY = "agent, one call", "agent, no evidence", "agent"


def main(
    table: str = "tiny",
    name: str = "",
    experts: str = "",
    horizons: tuple[int, ...] = (64, 8),
    seeds: int = 5,
    max_calls: int = 4,
    timesteps: int = TrainConfig.timesteps,
    queries: int = 16_384,
    others: bool = True,
    parallel: int = 2,
    runs: Path = Path("runs/calls"),
) -> None:
    """Trains and evaluates, then adds a section to the results for each horizon.

    Args:
        table: table directory or name of a built-in table.
        name: heading of the section; the table's if empty.
        experts: names of the experts to use, separated by commas; all if empty.
        horizons: queries in an episode.
        seeds: how many, from 0.
        max_calls: experts that may be asked about a query.
        timesteps: of each training.
        queries: asked at each budget in the evaluation.
        others: whether the routers that ask several experts play too.
        parallel: processes.
        runs: where the runs are written; finished ones are not made again.
    """
    name = name or Path(table).name
    jobs = []
    for seed in range(seeds):
        config = TrainConfig(table, experts, horizon=0, max_calls=max_calls, timesteps=timesteps, seed=seed)
        jobs.append((config, horizons, runs / name, queries, others))
    with ProcessPoolExecutor(parallel, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(_one_seed, jobs))
    for horizon in horizons:
        heading = f"{name}, horizon {horizon}{', beside other routers' if others else ''}"
        _add_section(heading, [seed[horizon] for seed in results])


def _one_seed(job: tuple[TrainConfig, tuple[int, ...], Path, int, bool]) -> dict[int, dict[str, Any]]:
    """For each horizon what `_compare` found."""
    config, horizons, runs, queries, others = job
    assert config.max_calls != "auto"
    torch.set_num_threads(1)
    table = resolve(config.table, config.experts or None, "cpu")
    predictor = fit_predictor(table, config.seed)
    results = {}
    for horizon in horizons:
        playing: dict[str, tuple[Router, Rules]] = {}
        for name, m in ((ONE, 1), (BLIND, config.max_calls), (MANY, config.max_calls)):
            trainer = Trainer(replace(config, horizon=horizon, max_calls=m), table, predictor)
            if name == BLIND:
                trainer.fitted_evidence = None
            run_dir = runs / f"h{horizon}-s{config.seed}-m{m}{'-blind' * (name == BLIND)}"
            agent, rules = _trained(trainer, run_dir), trainer.held_out_rules("test")
            playing[name] = agent, rules
            if name == MANY:
                playing[f"{MANY} before training"] = trainer.start, rules
                rivals = trainer.multi_call_routers() if others else {}
                playing |= {rival: (router, rules) for rival, router in rivals.items()}
        results[horizon] = _compare(playing, config.seed, queries)
    return results


def _compare(playing: dict[str, tuple[Router, Rules]], seed: int, queries: int) -> dict[str, np.ndarray]:
    """Names [R] and budgets [G]; score, spend, calls a query and the lead over one call with its standard error, each
    [R, G]; the agent's mean lead at `SHARES` and its standard error [R, 2]."""
    _, rules = playing[ONE]
    table, horizon = rules.table, rules.horizon
    budgets = budget_grid(rules) + [share * rules.cost_scale.high_usd for share in SHARES + OTHER_SHARES]
    episodes = episodes_for(rules, queries)
    results = {name: evaluate(router, own, budgets, episodes, seed) for name, (router, own) in playing.items()}
    leads = {name: lead(result, results[ONE]) for name, result in results.items()}
    over = {name: _mean_lead(results[MANY], result, AT_SHARES) for name, result in results.items()}
    line = ", ".join(f"{name} {100 * gain:+.2f}" for name, (gain, _) in over.items())
    print(f"seed {seed}, horizon {horizon}: the agent's lead at {SHARES}: {line}", flush=True)
    return {
        "names": np.array(list(results)),
        "budgets": np.array(budgets),
        "highest_usd": np.array(rules.cost_scale.high_usd),
        "highest_cost_score": np.array(float(table.mean_score("test")[table.mean_cost_usd().argmax()])),
        "score": np.stack([result.score for result in results.values()]),
        "cost_usd": np.stack([result.cost_usd for result in results.values()]),
        "calls": np.stack([result.calls.sum(axis=1) for result in results.values()]),
        "lead": np.stack([gain for gain, *_ in leads.values()]),
        "lead_stderr": np.stack([stderr for _, stderr, *_ in leads.values()]),
        "over": np.array(list(over.values())),
    }


def _mean_lead(result: Any, other: Any, budgets: slice) -> tuple[float, float]:
    """Mean lead of a result over another at some budgets, and its standard error, clustered by query."""
    cut = [replace(r, scored=r.scored[budgets], rows=r.rows[budgets]) for r in (result, other)]
    _, _, mean, stderr = lead(*cut)
    return mean, stderr


def _trained(trainer: Trainer, run_dir: Path) -> PolicyRouter:
    """What `train.py` keeps."""
    config, table = trainer.config, trainer.table
    began = time.perf_counter()
    trainer.prepare()
    if not (run_dir / "finished").exists():
        planned = time.perf_counter()
        trainer.fit(run_dir, trainer.baselines({"cheapest": Cheapest(table)}))
        (run_dir / "finished").touch()
        print(
            f"seed {config.seed}, horizon {config.horizon}, {config.max_calls} calls: plan {planned - began:.0f} s, "
            f"training {time.perf_counter() - planned:.0f} s",
            flush=True,
        )
    return trainer.kept_router(run_dir)


def _add_section(heading: str, seeds: list[dict[str, np.ndarray]]) -> None:
    """Replaces the section of that heading, or adds it."""
    text = _report(seeds)
    add_section(ROOT / "benchmarks" / "CALLS.md", "# Several calls a query", heading, text)
    print(f"## {heading}\n\n{text}")


def _report(seeds: list[dict[str, np.ndarray]]) -> str:
    names, budgets = seeds[0]["names"].tolist(), seeds[0]["budgets"]
    highest_usd = float(seeds[0]["highest_usd"])
    score = np.stack([s["score"] for s in seeds])  # [S, R, G]
    header = [f"{b:.2g}" for b in budgets[: -len(SHARES + OTHER_SHARES)]]
    header += [f"{round(100 * s)} %" for s in SHARES + OTHER_SHARES]
    lines = [
        f"Test split, {len(seeds)} seeds, mean score at budgets in dollars per query and in shares of the highest cost",
        f"({highest_usd:.2g}; alone it scores {float(seeds[0]['highest_cost_score']):.3f}); the agent's lead in points",
        "at 30 to 70 %, with its 95 % interval over seeds, which draw other episodes of the same queries, and its",
        "standard error for other queries.",
        "",
        "| | " + " | ".join(header) + " | first six | 30 to 70 % | agent's lead |",
        "|---" * (len(header) + 4) + "|",
    ]
    for r, name in enumerate(names):
        over = np.array([s["over"][r] for s in seeds])
        mean, half = interval(100 * over[:, 0])
        lead_cell = "" if name == MANY else f"{mean:+.2f} ± {half:.2f} (s.e. {100 * over[:, 1].mean():.2f})"
        cells = [f"{x:.3f}" for x in score[:, r].mean(axis=0)]
        means = f"{score[:, r, GRID].mean():.4f} | {score[:, r, AT_SHARES].mean():.4f}"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {means} | {lead_cell} |")
    many = names.index(MANY)
    gain = 100 * np.stack([s["lead"][many] for s in seeds]).mean(axis=0)
    stderr = 100 * np.stack([s["lead_stderr"][many] for s in seeds]).mean(axis=0)
    calls = np.stack([s["calls"][many] for s in seeds]).mean(axis=0)
    lines += [
        "| lead over one call, points | "
        + " | ".join(f"{x:+.2f}" for x in gain)
        + f" | {gain[GRID].mean():+.2f} | {gain[AT_SHARES].mean():+.2f} | |",
        "| its standard error | " + " | ".join(f"{x:.2f}" for x in stderr) + " | | | |",
        "| calls a query | " + " | ".join(f"{x:.2f}" for x in calls) + " | | | |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    tyro.cli(main)
