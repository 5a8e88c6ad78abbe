"""What `Orchestrator.add_expert` gains without retraining, and what retraining would gain.

python benchmarks/new_expert.py --table tiny --leave-out large arithmetic

For each expert left out: an agent trained without it, the same agent after it was shown what the expert did on a few
hundred training queries, and an agent trained with all experts and all training queries, on the same test episodes.
Results go to `benchmarks/NEW_EXPERT.md`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import tyro
from sections import add_section

import train
from agents import Orchestrator
from agents.evaluation.evaluate import Result, evaluate, lead
from agents.training.config import TrainConfig
from leeroo_env import ExpertTable
from leeroo_env.builtin import resolve
from leeroo_env.dynamics import budget_grid, make_rules

ROOT = Path(__file__).parents[1]


def main(
    table: str = "tiny",
    experts: str = "",
    leave_out: tuple[str, ...] = ("large", "arithmetic", "small"),
    queries: int = 300,
    timesteps: int = 200_000,
    seed: int = 0,
) -> None:
    """Trains twice for each expert left out and writes a table of scores.

    Args:
        table: table directory or name of a built-in table.
        experts: names of the experts to use, separated by commas; all if empty.
        leave_out: the experts that come later, one at a time.
        queries: how many training queries the new one has answered.
        timesteps: of each training.
        seed: of everything.
    """
    full = resolve(table, experts or None)
    heading = f"{full.name}, {len(full.experts)} experts, {queries} answers of the new one"
    lines = [
        f"Test split, mean score over six budgets, seed {seed}; leads over the agent without the expert, ± one "
        "standard error (by query).",
        "",
        f"| expert left out | without it | shown {queries} of its answers | retrained on all |",
        "|---|---|---|---|",
    ]
    for name in leave_out:
        without, added, retrained = _compare(full, name, queries, timesteps, seed)
        cells = [f"{without.mean_score:.4f}", *(_cell(result, without) for result in (added, retrained))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = "\n".join(lines)
    add_section(ROOT / "benchmarks" / "NEW_EXPERT.md", "# A new expert without retraining", heading, text)
    print(f"## {heading}\n\n{text}")


def _compare(full: ExpertTable, name: str, queries: int, timesteps: int, seed: int) -> list[Result]:
    """Without the expert, with it added, with it trained on: results on the same episodes."""
    others = [expert for expert in full.experts if expert != name]
    ordered = full.select([*others, name])
    rules = make_rules(ordered, "test")
    budgets = budget_grid(rules)
    generator = torch.Generator().manual_seed(seed)
    rows = full.rows("train")[torch.randperm(len(full.rows("train")), generator=generator)[:queries]]
    texts = [full.queries["text"][int(row)].as_py() for row in rows]
    without = _trained(full.select(others), timesteps, seed)
    results = [evaluate(without.router(ordered), rules, budgets, seed=seed)]
    outcomes = ordered.embeddings[rows].float(), ordered.scores[rows, -1], ordered.costs_usd[rows, -1]
    without.add_expert(name, *outcomes, texts)
    for agent in (without, _trained(ordered, timesteps, seed)):
        results.append(evaluate(agent.router(ordered), rules, budgets, seed=seed))
    return results


def _trained(table: ExpertTable, timesteps: int, seed: int) -> Orchestrator:
    with tempfile.TemporaryDirectory() as where:
        table.save(Path(where) / "table")
        run_dir = str(Path(where) / "run")
        table_dir = str(Path(where) / "table")
        train.run(TrainConfig(table_dir, max_calls=1, timesteps=timesteps, seed=seed, run_dir=run_dir))
        return Orchestrator.load(run_dir)


def _cell(result: Result, without: Result) -> str:
    _, _, gain, stderr = lead(result, without)
    return f"{result.mean_score:.4f} ({gain:+.4f} ± {stderr:.4f})"


if __name__ == "__main__":
    tyro.cli(main)
