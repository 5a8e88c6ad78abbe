"""Trains an orchestrator: table -> environment -> agent -> learn -> evaluate. `--help` explains the options."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor

from agents import Orchestrator
from agents.estimators.ensemble import Predictor, fit_predictors, reliability_of, table_estimates
from agents.evaluation.report import compare, write_report
from agents.policies.bid_price import BidPricePolicy, estimate_features
from agents.policies.io import PolicyRouter, describe_policy
from agents.policies.multi_call import MultiCallPolicy, start_from_plan
from agents.routers import Router, multi_call_routers, one_call_routers
from agents.training.callbacks import Interrupted, Monitor, stop_on_interrupt, tensorboard_logger
from agents.training.checkpoint import latest_checkpoint, restore_checkpoint
from agents.training.config import TrainConfig
from agents.training.factory import make_model
from agents.training.run_dir import begin_run, check_new_run, check_unchanged, config_of, find_run, read_settings
from agents.training.runtime import choose_device, run_in_parallel
from agents.training.seeds import write_seeds_report
from leeroo_env import ExpertTable, InputError
from leeroo_env.builtin import resolve
from leeroo_env.cli import exit_code
from leeroo_env.dynamics import Rules, make_rules
from leeroo_env.files import write_tensors


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 2 for bad input, 130 for an interrupted run."""
    warnings.filterwarnings("ignore", "Glyph .* missing from font")  # names in scripts that matplotlib's font lacks

    def work() -> int:
        config = tyro.cli(TrainConfig, args=arguments)
        if not config.resume:
            return run(config)
        run_dir = find_run(config)
        given = tyro.cli(TrainConfig, args=arguments, default=config_of(run_dir))
        check_unchanged(given, run_dir)
        return run(given, run_dir)

    return exit_code(work, "go on from the last checkpoint with --resume")


def run(config: TrainConfig, run_dir: Path | None = None) -> int:
    """The whole of a run; returns the exit code.

    Args:
        config: the settings.
        run_dir: a run that was begun with these settings, to go on with; None: a new one.

    Raises:
        InputError: before anything is written, if the settings make no sense.
    """
    config.check()
    torch.set_num_threads(config.threads)
    table = resolve(config.table, config.experts or None, choose_device(config.device))
    make_rules(table, "train", config.horizon, config.budget or None, config.cost_weight, config.max_calls)
    table.rows("val"), table.rows("test")
    config.policy_kind()
    new = run_dir is None
    if run_dir is None:
        run_dir = new_run_dir(config)
        check_new_run(run_dir)
    seeds = range(config.seed, config.seed + config.seeds)
    fits = (lambda: fit_predictors(table, seeds), lambda: one_call_routers(table, config.horizon, config.seed))
    predictors, routers = run_in_parallel(*fits)
    if config.seeds == 1:
        return train_agent(config, table, predictors[0], routers, run_dir, new)
    if new:
        begin_run(run_dir, config.as_settings(run_dir))
    for seed, predictor in zip(seeds, predictors, strict=True):
        own = run_dir / f"seed-{seed}"
        one = replace(config, seed=seed, seeds=1, run_dir=str(own))
        begun = (own / "config.yaml").exists()
        if not (own / "report.md").exists() and (code := train_agent(one, table, predictor, routers, own, not begun)):
            return code
    write_seeds_report(run_dir, [run_dir / f"seed-{seed}" for seed in seeds])
    print(f"report: {run_dir / 'report.md'}")
    return 0


def train_agent(
    config: TrainConfig,
    table: ExpertTable,
    predictor: Predictor,
    routers: dict[str, Router],
    run_dir: Path,
    new: bool,
) -> int:
    """One agent, from its settings to its report; if it is not `new`, it goes on with what `run_dir` holds."""
    device, policy, budget = table.device, config.policy_kind(), config.budget or None
    estimates = table_estimates(table, predictor)
    reliability = reliability_of(estimates)
    features = estimate_features(estimates, table.cost_scale()) if policy == "bid-price" else None
    calls = config.max_calls, reliability, features
    rules = make_rules(table, "train", config.horizon, budget, config.cost_weight, *calls)
    val_rules, test_rules = (held_out_rules(table, split, config, reliability, features) for split in ("val", "test"))
    model, hyperparameters = make_model(config, policy, rules)
    if isinstance(model.policy, BidPricePolicy):
        start_from_plan(model.policy, table, predictor.rows, predictor.out_of_fold, config.seed)
    description = describe_policy(rules, config.algo, hyperparameters["policy_kwargs"], policy, config.hide_budget)
    iteration = model.n_envs * getattr(model, "n_steps", config.horizon)
    sha256 = description["table_sha256"]
    checkpoint = None
    if new:
        extra = {"hyperparameters": hyperparameters, "table_sha256": sha256}
        begin_run(run_dir, {**config.as_settings(run_dir), **extra})
    else:
        if read_settings(run_dir).get("table_sha256") != sha256:
            raise InputError(f"{run_dir}: its checkpoint is of another table; this one has changed since the run began")
        checkpoint = latest_checkpoint(run_dir / "checkpoints")  # none: it is begun again
    if config.max_calls > 1:
        fitted = (
            model.policy.answer_model if isinstance(model.policy, MultiCallPolicy) else None
        )  # takes seconds to fit
        routers = routers | multi_call_routers(table, estimates, config.max_calls, config.seed, fitted)
    monitor = Monitor(
        run_dir,
        val_rules,
        routers,
        description,
        {**asdict(config), **hyperparameters, "policy": policy},
        config.timesteps,
        config.evaluation_period(iteration),
        iteration,
    )
    if checkpoint is not None:
        monitor.progress = restore_checkpoint(checkpoint, model)
    if policy == "bid-price":
        write_tensors(run_dir / "policy" / "predictor.safetensors", predictor.tensors())
    model.set_logger(tensorboard_logger(run_dir, resumed_at=model.num_timesteps))
    print(f"{table}\nwriting to {run_dir}; watch with: tensorboard --logdir {run_dir.parent}")
    undo = stop_on_interrupt(monitor)
    try:
        remaining = max(0, config.timesteps - model.num_timesteps)
        model.learn(remaining, callback=monitor, log_interval=None, reset_num_timesteps=checkpoint is None)
    except Interrupted:
        print(f"saved at step {model.num_timesteps:,}; go on with: python train.py --resume --run-dir {run_dir}")
        return 130
    finally:
        undo()
        monitor.close()
        model.logger.close()

    best = Orchestrator.load(run_dir, device)
    agent = PolicyRouter(best.policy, best.description, rules.features)
    results = compare(routers := {"agent": agent, **routers}, test_rules, config.seed)
    notes = (
        f"Made with `{config.algo}` and the {policy} policy, seed {config.seed}, {model.num_timesteps:,} steps; kept "
        f"is the state at step {monitor.progress['best_step']:,}, the best on val. `config.yaml` has all settings."
    )
    write_report(run_dir, test_rules, "test", config.seed, routers, results, estimates, notes)
    print(f"report: {run_dir / 'report.md'}")
    return 0


def held_out_rules(
    table: ExpertTable, split: str, config: TrainConfig, reliability: Tensor, features: Tensor | None
) -> Rules:
    """Those of an evaluation, with all of a split's queries where these are fewer than an episode's."""
    horizon = min(config.horizon, len(table.rows(split)))
    return make_rules(table, split, horizon, max_calls=config.max_calls, reliability=reliability, features=features)


def new_run_dir(config: TrainConfig) -> Path:
    name = f"{Path(config.table).name}-{config.algo}-{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path(config.run_dir or f"runs/{name}")


if __name__ == "__main__":
    sys.exit(main())
