"""Searches for hyperparameters: Ray Tune runs the trials, Optuna proposes them, and val decides which is best.

The first trial has the defaults. Trials that fall behind on val are stopped early. Test queries are not used.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.evaluation.evaluate import episodes_for, evaluate
from agents.policies.bid_price import BidPricePolicy
from agents.routers.policy import PolicyRouter
from agents.training.callbacks import VAL_QUERIES, WARM_UP
from agents.training.factory import make_model
from agents.training.trainer import Trainer
from agents.training.trials import SEARCH, Search, Trial, words_of
from experts.cluster.session import ray_session
from leeroo_env import InputError
from leeroo_env.files import write_json

PARTS = 5  # of a trial, with an evaluation after each; a bid-price policy trains its critic alone in the first
SPACE: dict[str, tuple[str, tuple[Any, ...]]] = {  # kind and arguments in Ray Tune
    "learning_rate": ("loguniform", (1e-4, 3e-3)),
    "n_epochs": ("randint", (1, 5)),
    "batch_size": ("choice", ((512, 1024, 2048, 4096, 8192),)),
    "gae_lambda": ("uniform", (0.5, 1.0)),
    "ent_coef": ("choice", ((0.0, 1e-4, 1e-3, 3e-3, 1e-2),)),
}


def search(trainer: Trainer, n_trials: int, run_dir: Path) -> dict[str, float]:
    """The hyperparameters of the trial that was best on val; writes `search.json` and TensorBoard's curves of trials.

    Args:
        trainer: prepared; trials begin with its start.
        n_trials: at least 2.
        run_dir: where to write.

    Raises:
        InputError: Ray Tune or Optuna is missing, or the algorithm has nothing to search for.
    """
    tune, optuna, schedulers = libraries()
    defaults = {name: trainer.hyperparameters[name] for name in SPACE if name in trainer.hyperparameters}
    space = {name: _domain(tune, name, defaults[name]) for name in defaults}
    shared = copy(trainer)
    del shared.model, shared.start
    start = {name: value.cpu() for name, value in trainer.model.policy.state_dict().items()}
    log = _log_of(tune, run_dir, defaults)
    shared.bars, shared.one_call = None, None  # type: ignore[assignment]
    gpu = 0.25 if trainer.table.device.type == "cuda" else 0
    with ray_session("--tune"), tempfile.TemporaryDirectory() as directory:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_run, trainer=shared, start=start), {"cpu": 1, "gpu": gpu}),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=n_trials,
                search_alg=optuna.OptunaSearch(seed=trainer.config.seed, points_to_evaluate=[defaults]),
                scheduler=schedulers.ASHAScheduler(max_t=PARTS, grace_period=2, reduction_factor=2),
            ),
            run_config=tune.RunConfig(storage_path=directory, verbose=0, callbacks=[log]),
        )
        results = tuner.fit()
    if results.errors:
        raise RuntimeError(f"{len(results.errors)} of {n_trials} trials failed") from results.errors[0]
    found = Search(trials=log.trials())
    write_json(run_dir / SEARCH, found.model_dump())
    return found.winner.settings


def libraries() -> tuple[Any, Any, Any]:
    """Ray Tune, its Optuna and its schedulers. Raises InputError where one is missing."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # progress is told here
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the search
    try:
        from optuna.logging import WARNING, set_verbosity  # Ray finds out too late that it is missing
        from ray import tune
        from ray.tune import schedulers
        from ray.tune.search import optuna
    except ImportError as error:
        raise InputError(f"--tune: {error.name or 'Ray'} is missing: pip install -e '.[ray]'") from None
    set_verbosity(WARNING)
    return tune, optuna, schedulers


def _domain(tune: Any, name: str, default: float) -> Any:
    kind, arguments = SPACE[name]
    if kind == "choice" and default not in arguments[0]:  # that of many episodes at once, for instance
        arguments = ((*arguments[0], default),)
    return getattr(tune, kind)(*arguments)


def _run(settings: Mapping[str, float], trainer: Trainer, start: dict[str, torch.Tensor]) -> None:
    """One trial, in a process of its own."""
    from ray import tune

    torch.set_num_threads(trainer.config.threads)
    trainer.config = replace(trainer.config, tuned=dict(settings))
    model, _ = make_model(trainer.config, trainer.policy_kind, trainer.training_rules())
    model.policy.load_state_dict(start)
    rules, timesteps, policy = trainer.held_out_rules("val"), trainer.config.timesteps, model.policy
    budgets, never = trainer.budgets().main, None
    while model.num_timesteps < timesteps:
        if isinstance(policy, BidPricePolicy):
            policy.train_actor(model.num_timesteps >= WARM_UP * timesteps)
        model.learn(-(-timesteps // PARTS), log_interval=never, reset_num_timesteps=False)  # type: ignore[arg-type]
        router = PolicyRouter(policy, trainer.description, trainer.features)
        result = evaluate(router, rules, budgets, episodes_for(rules, VAL_QUERIES))
        tune.report({"score": result.mean_score, "steps": model.num_timesteps})


def _log_of(tune: Any, run_dir: Path, defaults: dict[str, float]) -> Any:
    """Follows the trials in this process: a line each at its end, its curve in TensorBoard."""

    class Log(tune.Callback):
        def __init__(self) -> None:
            self.done: dict[str, Trial] = {}
            self.writers: dict[str, SummaryWriter] = {}

        def on_trial_result(self, iteration: int, trials: Sequence[Any], trial: Any, result: Any, **_: Any) -> None:
            if trial.trial_id not in self.writers:
                folder = run_dir / "search" / f"trial-{len(self.writers)}"
                self.writers[trial.trial_id] = SummaryWriter(log_dir=str(folder))
                self.done[trial.trial_id] = Trial(settings={name: trial.config[name] for name in defaults})
            known = self.done[trial.trial_id]
            known.scores.append(float(result["score"]))
            known.steps.append(int(result["steps"]))
            self.writers[trial.trial_id].add_scalar("val/score", known.scores[-1], known.steps[-1])

        def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
            known, writer = self.done[trial.trial_id], self.writers[trial.trial_id]
            writer.add_hparams(dict(known.settings), {"val/best_score": known.best}, run_name=".")
            writer.close()
            number = list(self.done).index(trial.trial_id)
            tqdm.write(f"trial {number}: val score {known.best:.4f}, {known.steps[-1]:,} steps; {words_of(known)}")

        def trials(self) -> list[Trial]:
            """The one with the defaults first."""
            return sorted(self.done.values(), key=lambda trial: trial.settings != defaults)

    return Log()
