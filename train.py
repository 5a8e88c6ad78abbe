"""Trains an orchestrator: table -> environment -> agent -> learn -> evaluate. `--help` explains the options."""

from __future__ import annotations

import platform
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm

from agents import Orchestrator
from agents.algorithms import ALGORITHMS, AlgorithmName
from agents.callbacks import Interrupted, Monitor, stop_on_interrupt, tensorboard_logger
from agents.checkpoint import latest_checkpoint, restore_checkpoint
from agents.evaluate import evaluate
from agents.files import write_text
from agents.policy import describe_policy
from agents.report import write_report
from agents.routers import simple_routers
from leeroo_env import InputError, LeerooVectorEnv
from leeroo_env.builtin import DEFAULT, resolve
from leeroo_env.dynamics import COST_WEIGHT, HORIZON, Rules, budget_grid, make_rules
from leeroo_env.sb3 import LeerooSB3VecEnv


@dataclass(frozen=True)
class Config:
    """Trains an agent that routes queries among language models, and reports how it does on queries it never saw."""

    table: str = DEFAULT
    """A table directory, or the name of a built-in one (tiny: real answers of the tiny models that ship)."""
    experts: str = ""
    """Names of the experts to use, separated by commas; all of the table's if empty."""
    algo: AlgorithmName = "ppo"
    """The algorithm that learns: ppo, a2c, dqn from stable-baselines3; maskable_ppo, qrdqn, trpo from sb3-contrib."""
    timesteps: int = 500_000
    """Queries to route in training; the last iteration is completed."""
    n_envs: int = 0
    """Episodes played in lockstep; 0 takes the algorithm's own default."""
    horizon: int = HORIZON
    """Queries in an episode: what one budget has to last for."""
    budget: Annotated[tuple[float, ...], tyro.conf.arg(metavar="USD [USD]")] = ()
    """Dollars per query: one number fixes the budget, two give the range it is drawn from in every episode; none: from
    the cheapest expert's mean cost to the dearest's, so that one policy serves every budget."""
    cost_weight: float = COST_WEIGHT
    """What a call of the dearest expert costs in the reward, against 1 for a right answer."""
    seed: int = 0
    """Decides everything that is random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where table and network are; auto takes the GPU if there is one."""
    threads: int = 1
    """Threads of torch. One is usually fastest for networks of this size, and never far behind."""
    run_dir: str = ""
    """Where the run is written; runs/TABLE-ALGO-SEED-TIME if empty."""
    resume: bool = False
    """Go on with the run in --run-dir (the latest in runs/ if that is empty), with the settings it began with."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 2 for bad input, 130 for an interrupted run."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    config = tyro.cli(Config, args=arguments)
    try:
        return run(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(config: Config) -> int:
    """The whole of a run. Raises InputError before anything is written if the settings make no sense."""
    run_dir = find_run(config) if config.resume else None
    if run_dir is not None:
        config = read_config(run_dir)
    torch.set_num_threads(max(1, config.threads))
    device = choose_device(config.device)
    table = resolve(config.table, [e.strip() for e in config.experts.split(",")] if config.experts else None, device)
    budget = read_budget(config.budget)
    rules = make_rules(table, "train", config.horizon, budget, config.cost_weight)
    val_rules = make_rules(table, "val", min(config.horizon, len(table.rows("val"))))
    test_rules = make_rules(table, "test", min(config.horizon, len(table.rows("test"))))
    model, hyperparameters = make_model(config, rules)
    description = describe_policy(rules, config.algo, ALGORITHMS[config.algo].policy_kwargs)
    iteration = model.n_envs * getattr(model, "n_steps", config.horizon)
    eval_every = max(config.timesteps // 20, iteration)
    checkpoint = None
    if run_dir is None:
        run_dir = new_run(config, {**hyperparameters, "n_envs": model.n_envs}, description["table_sha256"])
    else:
        check_same_table(run_dir, description["table_sha256"])
        checkpoint = latest_checkpoint(run_dir / "checkpoints")

    monitor = Monitor(
        run_dir, val_rules, description, {**asdict(config), **hyperparameters}, config.timesteps, eval_every, iteration
    )
    if checkpoint is not None:
        monitor.progress = restore_checkpoint(checkpoint, model)
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

    agent = Orchestrator.load(run_dir, device)
    budgets = budget_grid(test_rules)
    routers = {"agent": agent, **simple_routers(table, config.seed)}
    results = {name: evaluate(router, test_rules, budgets) for name, router in routers.items()}
    notes = (
        f"Made with `{config.algo}`, seed {config.seed}, {model.num_timesteps:,} steps; kept is the policy of step "
        f"{monitor.progress['best_step']:,}, the best on the val split. All settings are in `config.yaml`."
    )
    write_report(run_dir, test_rules, "test", config.seed, budgets, results, notes)
    for name, result in results.items():
        print(f"{name:>14}  " + "  ".join(f"{s:.3f}" for s in result.score) + f"   mean {result.mean_score:.4f}")
    print(f"{'usd per query':>14}  " + "  ".join(f"{b:.2g}" for b in budgets) + f"\nreport: {run_dir / 'report.md'}")
    return 0


def choose_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch finds no usable GPU here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def read_budget(budget: tuple[float, ...]) -> float | tuple[float, ...] | None:
    if len(budget) > 2:
        raise InputError(f"budget {budget}: give one number or two")
    return budget[0] if len(budget) == 1 else budget or None


def make_model(config: Config, rules: Rules) -> tuple[BaseAlgorithm, dict[str, Any]]:
    """The algorithm on its environment, and the settings it was given."""
    if config.timesteps < 1 or config.n_envs < 0:
        raise InputError(f"timesteps {config.timesteps}, n_envs {config.n_envs}: must be positive")
    algorithm = ALGORITHMS[config.algo]
    policy_class: Any = algorithm.load()
    vector_env = LeerooVectorEnv(
        num_envs=config.n_envs or algorithm.n_envs,
        table=rules.table,
        horizon=config.horizon,
        budget=rules.budget_usd_per_query,
        cost_weight=config.cost_weight,
    )
    settings = dict(algorithm.settings)
    if "n_steps" in settings and "batch_size" in settings:
        settings["batch_size"] = min(settings["batch_size"], vector_env.num_envs * settings["n_steps"])
    settings |= {"seed": config.seed, "device": rules.table.device}
    model = policy_class(
        "MlpPolicy", LeerooSB3VecEnv(vector_env), policy_kwargs=dict(algorithm.policy_kwargs), **settings
    )
    return model, algorithm.settings | algorithm.policy_kwargs


def new_run(config: Config, hyperparameters: dict[str, Any], table_sha256: str) -> Path:
    """Makes the run's directory and writes down what it is made with."""
    name = f"{Path(config.table).name}-{config.algo}-{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = Path(config.run_dir or f"runs/{name}")
    if (run_dir / "config.yaml").exists():
        raise InputError(f"{run_dir}: holds a run already; go on with it by --resume, or name another --run-dir")
    packages = ("torch", "numpy", "gymnasium", "stable-baselines3")
    made_with = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    content = {
        **asdict(config),
        "budget": list(config.budget),
        "run_dir": str(run_dir),
        "hyperparameters": hyperparameters,
        "table_sha256": table_sha256,
        "made_with": made_with,
    }
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_text(run_dir / "config.yaml", yaml.safe_dump(content, sort_keys=False))
    except OSError as error:
        raise InputError(f"{run_dir}: cannot be written: {error.strerror or error}") from None
    return run_dir


def find_run(config: Config) -> Path:
    """The run to go on with."""
    if config.run_dir:
        return Path(config.run_dir)
    runs = sorted(Path("runs").glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise InputError("runs/: holds no run to resume")
    return runs[-1].parent


def read_config(run_dir: Path) -> Config:
    path = run_dir / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text())
        known = {field.name: content[field.name] for field in fields(Config)}
        return Config(**{**known, "budget": tuple(content["budget"])})
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the settings of a run: {str(error).splitlines()[0]}") from None


def check_same_table(run_dir: Path, table_sha256: str) -> None:
    began_with = yaml.safe_load((run_dir / "config.yaml").read_text()).get("table_sha256")
    if began_with != table_sha256:
        raise InputError(f"{run_dir}: its checkpoint is of another table; this one has changed since the run began")


if __name__ == "__main__":
    sys.exit(main())
