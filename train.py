"""Trains an orchestrator: table -> environment -> agent -> learn -> evaluate. `--help` explains the options."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from torch import Tensor

from agents import Orchestrator
from agents.estimators.ensemble import Predictor, estimates_of, fit_predictors, reliability_of
from agents.evaluation.report import compare, write_report
from agents.policies.bid_price import BidPricePolicy, table_of_estimates
from agents.policies.io import PolicyRouter, describe_policy
from agents.policies.multi_call import MultiCallPolicy, start_from_plan
from agents.routers import Router, calling_routers, other_routers
from agents.training.algorithms import ALGORITHMS, AlgorithmName
from agents.training.callbacks import Interrupted, Monitor, stop_on_interrupt, tensorboard_logger
from agents.training.checkpoint import latest_checkpoint, restore_checkpoint
from agents.training.device import choose_device
from agents.training.factory import make_model
from agents.training.run_dir import begin_run, latest_run, read_settings, resumed
from agents.training.seeds import write_seeds_report
from agents.training.threads import choose_threads, side_by_side
from leeroo_env import ExpertTable, InputError
from leeroo_env.builtin import BUILTIN, DEFAULT, resolve
from leeroo_env.cli import exit_code
from leeroo_env.dynamics import COST_WEIGHT, HORIZON, Rules, make_rules
from leeroo_env.files import write_tensors


@dataclass(frozen=True)
class Config:
    """Trains an agent that routes queries among language models, and reports how it does on queries it never saw."""

    table: str = DEFAULT
    """A table directory, or the name of a built-in one (tiny: real answers of the tiny models that ship)."""
    experts: str = ""
    """Names of the experts to use, separated by commas; all of the table's if empty."""
    algo: AlgorithmName = "ppo"
    """The algorithm that learns: ppo, a2c, dqn from stable-baselines3; maskable_ppo, qrdqn, trpo from sb3-contrib."""
    policy: Literal["auto", "bid-price", "mlp"] = "auto"
    """bid-price: weighs estimates of score and cost by a price that depends on the budget (ppo and a2c); mlp: a
    plain network on embedding and budget; auto: bid-price where the algorithm can train it."""
    timesteps: int = 500_000
    """Queries to route in training; the last iteration is completed."""
    n_envs: int = 0
    """Episodes played in lockstep; 0 takes the algorithm's own default."""
    horizon: int = HORIZON
    """Queries in an episode: what one budget has to last for."""
    budget: Annotated[tuple[float, ...], tyro.conf.arg(metavar="USD [USD]")] = ()
    """Dollars per query: one number fixes the budget, two give the range it is drawn from in every episode; none: from
    the cheapest expert's mean cost to the dearest's, so that one policy serves every budget."""
    max_calls: int = 1
    """Experts that may be asked about one query; with more than one their answers are compared, and the one with the
    strongest support is delivered. Needs the table's answers."""
    cost_weight: float = COST_WEIGHT
    """What a call of the dearest expert costs in the reward, against 1 for a right answer."""
    hide_budget: bool = False
    """Shows the policy nothing of the budget or of the queries left: an ablation, which should hurt."""
    seed: int = 0
    """Decides everything that is random, the episodes of the evaluation included."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where table and network are; auto takes the GPU if there is one."""
    seeds: int = 1
    """Agents to train, with --seed and the numbers after it; their mean and interval are reported."""
    threads: int = 0
    """Threads of torch; 0 tries for a moment whether one or all cores are faster here. Bits depend on it."""
    run_dir: str = ""
    """Where the run is written; runs/TABLE-ALGO-SEED-TIME if empty."""
    resume: bool = False
    """Go on with the run in --run-dir (the latest in runs/ if that is empty), with the settings it began with."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 2 for bad input, 130 for an interrupted run."""
    warnings.filterwarnings("ignore", "Glyph .* missing from font")  # names in scripts that matplotlib's font lacks
    return exit_code(lambda: run(tyro.cli(Config, args=arguments)), "go on from the last checkpoint with --resume")


def run(config: Config) -> int:
    """The whole of a run. Raises InputError before anything is written if the settings make no sense."""
    run_dir = (Path(config.run_dir) if config.run_dir else latest_run(Path("runs"))) if config.resume else None
    if run_dir is not None:
        config = resumed(config, run_dir)
    check_numbers(config)
    config = replace(config, threads=choose_threads(config.threads))
    table = resolve(config.table, config.experts or None, choose_device(config.device))
    make_rules(table, "train", config.horizon, config.budget or None, config.cost_weight, config.max_calls)
    table.rows("val"), table.rows("test")
    choose_policy(config)
    seeds = range(config.seed, config.seed + config.seeds)
    fits = (lambda: fit_predictors(table, seeds), lambda: other_routers(table, config.horizon, config.seed))
    predictors, routers = side_by_side(*fits)
    if config.seeds == 1:
        return train_agent(config, table, predictors[0], routers, run_dir)
    if run_dir is None:
        run_dir = new_run_dir(config)
        begin_run(run_dir, settings_of(config, run_dir))
    for seed, predictor in zip(seeds, predictors, strict=True):
        own = run_dir / f"seed-{seed}"
        one = replace(config, seed=seed, seeds=1, run_dir=str(own))
        begun = own if (own / "config.yaml").exists() else None
        if not (own / "report.md").exists() and (code := train_agent(one, table, predictor, routers, begun)):
            return code
    write_seeds_report(run_dir, [run_dir / f"seed-{seed}" for seed in seeds])
    print(f"report: {run_dir / 'report.md'}")
    return 0


def train_agent(
    config: Config, table: ExpertTable, predictor: Predictor, routers: dict[str, Router], run_dir: Path | None
) -> int:
    """One agent, from its settings to its report; it goes on where `run_dir` is one that it began."""
    device, policy, budget = table.device, choose_policy(config), config.budget or None
    estimates = estimates_of(table, predictor)
    reliability = reliability_of(estimates)
    val_rules, test_rules = (held_out_rules(table, split, config, reliability) for split in ("val", "test"))
    played = table
    if policy == "bid-price":
        played = table_of_estimates(table, estimates, test_rules.price_range_usd[1])
    rules = make_rules(played, "train", config.horizon, budget, config.cost_weight, config.max_calls, reliability)
    model, hyperparameters = make_model(config, policy, rules)
    if isinstance(model.policy, BidPricePolicy):
        start_from_plan(model.policy, table, predictor.rows, predictor.out_of_fold, config.seed)
    description = describe_policy(
        rules, config.algo, hyperparameters["policy_kwargs"], policy, table, config.hide_budget
    )
    iteration = model.n_envs * getattr(model, "n_steps", config.horizon)
    sha256 = description["table_sha256"]
    checkpoint = None
    if run_dir is None:
        run_dir = new_run_dir(config)
        extra = {"hyperparameters": hyperparameters, "table_sha256": sha256}
        begin_run(run_dir, {**settings_of(config, run_dir), **extra})
    else:
        if read_settings(run_dir).get("table_sha256") != sha256:
            raise InputError(f"{run_dir}: its checkpoint is of another table; this one has changed since the run began")
        checkpoint = latest_checkpoint(run_dir / "checkpoints")  # none: it is begun again
    if config.max_calls > 1:
        fitted = (
            model.policy.answer_model if isinstance(model.policy, MultiCallPolicy) else None
        )  # takes seconds to fit
        routers = routers | calling_routers(table, estimates, config.max_calls, config.seed, fitted)
    monitor = Monitor(
        run_dir,
        replace(val_rules, table=played),
        val_rules,
        routers,
        description,
        {**asdict(config), **hyperparameters, "policy": policy},
        config.timesteps,
        evaluation_period(config, iteration),
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
    agent = PolicyRouter(best.policy, best.description, played.embeddings)
    results = compare(routers := {"agent": agent, **routers}, test_rules, config.seed)
    notes = (
        f"Made with `{config.algo}` and the {policy} policy, seed {config.seed}, {model.num_timesteps:,} steps; kept "
        f"is the state at step {monitor.progress['best_step']:,}, the best on val. `config.yaml` has all settings."
    )
    write_report(run_dir, test_rules, "test", config.seed, routers, results, estimates, notes)
    print(f"report: {run_dir / 'report.md'}")
    return 0


def held_out_rules(table: ExpertTable, split: str, config: Config, reliability: Tensor) -> Rules:
    """Those of an evaluation, with all of a split's queries where these are fewer than an episode's."""
    horizon = min(config.horizon, len(table.rows(split)))
    return make_rules(table, split, horizon, max_calls=config.max_calls, reliability=reliability)


def evaluation_period(config: Config, iteration: int) -> int:
    """Steps between two evaluations on val: these take longer with several calls a query."""
    return max(config.timesteps // (20 if config.max_calls == 1 else 8), iteration)


def check_numbers(config: Config) -> None:
    if config.timesteps < 1 or config.n_envs < 0:
        raise InputError(f"timesteps {config.timesteps}, n_envs {config.n_envs}: must be positive")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed {config.seed}: must be 0 to 2^32 - 1")
    if config.seeds < 1 or config.threads < 0:
        raise InputError(f"seeds {config.seeds}, threads {config.threads}: must be 1 or more, and 0 or more")


def choose_policy(config: Config) -> str:
    can = ALGORITHMS[config.algo].bid_price
    if config.policy == "bid-price" and not can:
        raise InputError(f"policy bid-price: {config.algo} cannot train it; use --policy mlp or another --algo")
    return config.policy if config.policy != "auto" else "bid-price" if can else "mlp"


def settings_of(config: Config, run_dir: Path) -> dict[str, Any]:
    """As a run directory remembers them."""
    name = config.table if config.table in BUILTIN else str(Path(config.table).resolve())
    return {**asdict(config), "table": name, "budget": list(config.budget), "run_dir": str(run_dir)}


def new_run_dir(config: Config) -> Path:
    name = f"{Path(config.table).name}-{config.algo}-{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path(config.run_dir or f"runs/{name}")


if __name__ == "__main__":
    sys.exit(main())
