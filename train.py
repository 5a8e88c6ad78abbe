"""Trains an orchestrator: table -> environment -> agent -> learn -> evaluate. `--help` explains the options."""

from __future__ import annotations

from agents import interrupt

if __name__ == "__main__":
    interrupt.quit_at_once()  # the imports take seconds

import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import tyro

from agents.distributed import ALONE, Processes, processes
from agents.estimators.ensemble import Predictor
from agents.evaluation.report import show
from agents.progress import shown
from agents.routers import Router
from agents.training import cluster
from agents.training.checkpoint import latest_checkpoint
from agents.training.config import AGENT, TrainConfig
from agents.training.fits import fit_all
from agents.training.parallel import check_parallel, check_resumed, follow
from agents.training.run_dir import (
    begin_run,
    check_new_run,
    check_unchanged,
    config_of,
    find_run,
    finish_run,
    how_to_continue,
    is_finished,
    read_settings,
)
from agents.training.runtime import Laps, choose_device
from agents.training.seeds import write_seeds_report
from agents.training.trainer import Trainer
from leeroo_env import ExpertTable, InputError
from leeroo_env.atomic import locked, remove_leftovers
from leeroo_env.builtin import resolve
from leeroo_env.cli import exit_code, is_interruption, no_interrupts
from leeroo_env.dynamics import make_rules
from leeroo_env.errors import first_line
from leeroo_env.files import write_json


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command line. Returns the exit code: 0, 2 for bad input, 130 for an interrupted run."""
    warnings.filterwarnings("ignore", "Glyph .* missing from font")  # names in scripts that matplotlib's font lacks

    def work() -> int:
        with processes() as started:
            if started.rank > 0:
                return follow(started)
            laps = Laps(interrupt.BEGAN)
            laps.end("imports")
            config = tyro.cli(TrainConfig, prog=prog, args=arguments)
            if not config.resume:
                return run(config, None, started, laps)
            run_dir = find_run(config)
            given = tyro.cli(TrainConfig, prog=prog, args=arguments, default=config_of(run_dir))
            check_unchanged(given, run_dir)
            check_resumed(run_dir, started)
            interrupt.will_say(how_to_continue(run_dir, new=False))
            return run(given, run_dir, started, laps)

    return exit_code(work, "nothing was written")


def run(
    config: TrainConfig, run_dir: Path | None = None, processes: Processes = ALONE, laps: Laps | None = None
) -> int:
    """The whole of a run; returns the exit code.

    Args:
        config: the settings.
        run_dir: a run that was begun with these settings, to go on with; None: a new one.
        processes: that train together, of which this is the first.
        laps: how long phases took so far.

    Raises:
        InputError: before anything is written, if the settings make no sense.
    """
    config.check()
    torch.set_num_threads(config.threads)
    table = resolve(config.table, config.experts or None, choose_device(config.device), config.verify)
    make_rules(table, "train", config.horizon, config.budget or None, config.cost_weight, config.most_calls(table))
    table.rows("val"), table.rows("test")
    check_parallel(config, table, processes)
    config.policy_kind()
    if config.tune:
        from agents.training.search import libraries

        libraries()
    new = run_dir is None
    if run_dir is None:
        run_dir = new_run_dir(config)
        check_new_run(run_dir)
    try:
        with nullcontext() if new else locked(run_dir):
            return train_agents(config, table, run_dir, new, processes, laps or Laps())
    except BaseException as error:
        if not (is_interruption(error) or isinstance(error, OSError)):
            raise
        with no_interrupts():
            kept = how_to_continue(run_dir, new)
        if is_interruption(error) or not isinstance(error, OSError):
            raise KeyboardInterrupt(kept) from None
        raise InputError(f"{run_dir}: cannot be written: {error.strerror or first_line(error)}; {kept}") from None


def train_agents(
    config: TrainConfig, table: ExpertTable, run_dir: Path, new: bool, processes: Processes, laps: Laps
) -> int:
    """One agent, or several seeds with what they share fitted once; arguments as `train_agent`."""
    seeds = range(config.seed, config.seed + config.seeds)
    laps.end("table")
    print(table)
    predictors, routers = fit_all(table, config.horizon, seeds, shown)
    laps.end("estimates")
    if config.tune and new:
        config = replace(config, tuned=search_settings(config, table, predictors[0], run_dir))
    if config.seeds == 1:
        trainer = Trainer(config, table, predictors[0], shown, processes, laps)
        return train_agent(config, trainer, routers, run_dir, new)
    interrupt.raise_again()
    if new:
        begin_run(run_dir, config.as_settings(run_dir))
    with locked(run_dir):
        left, each = list(zip(seeds, predictors, strict=True)), (config, table, routers)
        if cluster.is_given() and processes.world == 1:  # whose machines see the directory
            codes = iter(cluster.map_on_cluster("RAY_ADDRESS", train_seed, left, *each, run_dir.resolve()))
        else:
            codes = (train_seed(one, *each, run_dir, processes) for one in left)
        if code := next(filter(None, codes), 0):
            return code
        write_seeds_report(run_dir, [run_dir / f"seed-{seed}" for seed in seeds])
    print(f"report: {run_dir / 'report.md'}")
    return 0


def train_seed(
    seeded: tuple[int, Predictor],
    config: TrainConfig,
    table: ExpertTable,
    routers: dict[str, Router],
    run_dir: Path,
    processes: Processes = ALONE,
) -> int:
    """The agent of one of several seeds, unless it has its report already; returns the exit code."""
    seed, predictor = seeded
    own = run_dir / f"seed-{seed}"
    one = replace(config, seed=seed, seeds=1, run_dir=str(own))
    begun = (own / "config.yaml").exists()
    remove_leftovers(own)
    if is_finished(own):
        return 0
    return train_agent(one, Trainer(one, table, predictor, shown, processes), routers, own, not begun)


def search_settings(config: TrainConfig, table: ExpertTable, predictor: Predictor, run_dir: Path) -> dict[str, float]:
    """The hyperparameters that a search on val finds."""
    from agents.training.search import search

    trainer = Trainer(config, table, predictor, bars=shown)
    trainer.prepare()
    interrupt.raise_again()
    run_dir.mkdir(parents=True, exist_ok=True)
    return search(trainer, config.tune, run_dir)


def train_agent(config: TrainConfig, trainer: Trainer, routers: dict[str, Router], run_dir: Path, new: bool) -> int:
    """One agent, from its settings to its report; if it is not `new`, it goes on with what `run_dir` holds."""
    if config.agent != AGENT:
        return deploy_router(config, trainer, routers, run_dir, new)
    trainer.begin_report()
    baselines = trainer.baselines(routers)
    trainer.begin()
    sha256 = trainer.description.table_sha256
    interrupt.raise_again()
    checkpoint = None
    if new:
        made_with = {"hyperparameters": trainer.hyperparameters, "table_sha256": sha256}
        begin_run(run_dir, {**config.as_settings(run_dir), **made_with})
    else:
        if read_settings(run_dir).get("table_sha256") != sha256:
            raise InputError(f"{run_dir}: its checkpoint is of another table; this one has changed since the run began")
        checkpoint = latest_checkpoint(run_dir / "checkpoints")  # none: it starts again
    with locked(run_dir):
        if trainer.max_calls > 1:
            trainer.begin_multi_call_routers(baselines)
        print(f"writing to {run_dir}; watch with: tensorboard --logdir {run_dir.parent}")
        if not trainer.fit(run_dir, baselines, checkpoint):
            print(f"saved; go on with: python train.py --resume --run-dir {run_dir}")
            return 130
        print(show(trainer.evaluate(run_dir, routers, baselines)))
        write_json(run_dir / "timings.json", trainer.laps.seconds)
        finish_run(run_dir)
    print(f"report: {run_dir / 'report.md'}, as a page: {run_dir / 'report.html'}")
    return 0


def deploy_router(config: TrainConfig, trainer: Trainer, routers: dict[str, Router], run_dir: Path, new: bool) -> int:
    """A run directory that holds a router of the report in place of a trained agent."""
    if new:
        begin_run(run_dir, {**config.as_settings(run_dir), "table_sha256": trainer.table.fingerprint()})
    with locked(run_dir):
        if trainer.max_calls > 1:
            routers = routers | trainer.multi_call_routers()
        print(show(trainer.deploy(run_dir, routers)))
        finish_run(run_dir)
    print(f"report: {run_dir / 'report.md'}, as a page: {run_dir / 'report.html'}")
    return 0


def new_run_dir(config: TrainConfig) -> Path:
    name = f"{Path(config.table).name}-{config.algo}-{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path(config.run_dir or f"runs/{name}")


if __name__ == "__main__":
    interrupt.leave(main())
