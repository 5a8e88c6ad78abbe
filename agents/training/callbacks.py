"""Between training iterations: progress bar, TensorBoard, evaluation on val, checkpoints, and stopping on Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure as LoggedFigure
from stable_baselines3.common.logger import HParam, Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.evaluation.evaluate import Result, clearly_above, episodes_for, evaluate
from agents.evaluation.plots import draw_curve
from agents.policies.bid_price import BidPricePolicy
from agents.policies.description import PolicyDescription
from agents.policies.io import load_policy, save_policy
from agents.routers import Router
from agents.routers.policy import PolicyRouter
from agents.training.checkpoint import save_checkpoint
from leeroo_env.dynamics import Rules, budget_grid

VAL_QUERIES = 8_192
WARM_UP = 0.2  # share of the training in which a bid-price policy trains its critic alone
SHOWN = ("cheapest", "best mixture", "paced kernel ridge")  # routers evaluated on val once, to compare with
FIGURE_EVERY = 5  # evaluations; drawing a figure takes longer than one


class Interrupted(Exception):
    """The user stopped the run; it has been saved."""


@dataclass
class Progress:
    """What a run remembers between iterations, and a checkpoint stores.

    Attributes:
        best: the saved policy's score on val.
        best_step: the step at which it was saved.
        evaluated_at: step of the last evaluation.
        logged_at: step of the last log entry.
        evaluations: how many there have been.
    """

    evaluated_at: int
    best: float = -1.0
    best_step: int = 0
    logged_at: int = 0
    evaluations: int = 0


class Monitor(BaseCallback):
    """Logs, evaluates and saves between two iterations, where a checkpoint can be resumed exactly."""

    def __init__(
        self,
        run_dir: Path,
        rules: Rules,
        routers: dict[str, Router],
        description: PolicyDescription,
        hyperparameters: dict[str, Any],
        timesteps: int,
        eval_every: int,
        log_every: int,
    ):
        """
        Args:
            run_dir: where to write.
            rules: on val.
            routers: by name; those in `SHOWN` are evaluated on val beside the agent.
            description: of the policy, as `describe_policy` gives it.
            hyperparameters: for TensorBoard.
            timesteps: of the whole training.
            eval_every: steps between two evaluations.
            log_every: steps between two summaries of the episodes.
        """
        super().__init__()
        self.run_dir, self.rules = run_dir, rules
        self.routers = {name: router for name, router in routers.items() if name in SHOWN}
        self.description = description
        self.hyperparameters, self.timesteps = hyperparameters, timesteps
        self.eval_every, self.log_every = eval_every, log_every
        self.budgets_usd = budget_grid(rules)
        self.progress = Progress(evaluated_at=-eval_every)
        self.stopped = False
        self._episodes: list[dict[str, Any]] = []
        self._others: dict[str, Result] = {}
        self._kept: Result | None = None

    def _on_training_start(self) -> None:
        metrics = {"held_out/score": 0.0, "episode/score_per_query": 0.0}
        shown = {name: v if isinstance(v, int | float) else str(v) for name, v in self.hyperparameters.items()}
        self.logger.record("hyperparameters", HParam(shown, metrics))
        self._bar = tqdm(
            total=self.timesteps, initial=self.num_timesteps, unit="step", unit_scale=True, dynamic_ncols=True
        )
        self._clock, self._clock_step = time.perf_counter(), self.num_timesteps

    def _on_rollout_start(self) -> None:
        if isinstance(self.model.policy, BidPricePolicy):
            self.model.policy.train_actor(self.num_timesteps >= WARM_UP * self.timesteps)
        self._between_iterations()
        if self.stopped:
            self._checkpoint()
            raise Interrupted

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if info:
                self._episodes.append(info["episode"])
        self._bar.update(self.training_env.num_envs)
        return True

    def _on_training_end(self) -> None:
        self._between_iterations(last=True)

    def close(self) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()

    def _between_iterations(self, last: bool = False) -> None:
        step = self.num_timesteps
        unseen = step != self.progress.evaluated_at
        evaluate_now = unseen and (last or step - self.progress.evaluated_at >= self.eval_every)
        if not (evaluate_now or step - self.progress.logged_at >= self.log_every):
            return
        self._log_episodes()
        if evaluate_now:
            self._evaluate(last)
        self.progress.logged_at = step
        self.logger.dump(step)
        if evaluate_now and step > 0:
            self._checkpoint()
        self._clock, self._clock_step = time.perf_counter(), step  # steps/s excludes logging and evaluation

    def _log_episodes(self) -> None:
        """Logs means over the episodes that have ended since the last call."""
        seconds = time.perf_counter() - self._clock
        if self.num_timesteps > self._clock_step:
            self.logger.record("time/steps_per_s", (self.num_timesteps - self._clock_step) / seconds)
        if "train/entropy_loss" in self.logger.name_to_value:
            self.logger.record("train/entropy", -self.logger.name_to_value["train/entropy_loss"])
        if not self._episodes:
            return
        mean = {
            name: float(np.mean([e[name] for e in self._episodes])) for name in ("r", "score", "cost_usd", "refused")
        }
        self.logger.record("episode/return", mean["r"])
        self.logger.record("episode/score_per_query", mean["score"])
        self.logger.record("episode/spend_usd_per_query", mean["cost_usd"])
        self.logger.record("episode/refused_calls", mean["refused"])
        left = np.mean([e["left_usd"] / e["budget_usd"] for e in self._episodes])
        self.logger.record("episode/budget_left_share", float(left))
        calls = np.sum([e["calls"] for e in self._episodes], axis=0)
        for name, share in zip(self.rules.table.experts, calls / calls.sum(), strict=True):
            self.logger.record(f"share_of_calls/{name}", float(share))
        self._bar.set_postfix(score=f"{mean['score']:.3f}", refresh=False)
        self._episodes.clear()

    def _evaluate(self, last: bool) -> None:
        """Evaluates the policy on val; saves it if it is clearly better than the one saved last."""
        result = self._evaluated(PolicyRouter(self.model.policy, self.description, self.rules.features))
        self.progress.evaluated_at = self.num_timesteps
        better = self._is_better(result)
        if better:
            self._kept = result
            self.progress.best, self.progress.best_step = result.mean_score, self.num_timesteps
            description = self.description.model_copy(update={"step": self.num_timesteps})
            save_policy(self.run_dir / "policy", self.model.policy, description)
        self.logger.record("held_out/score", result.mean_score)
        for budget, score, cost in zip(self.budgets_usd, result.score, result.cost_usd, strict=True):
            self.logger.record(f"held_out/score_at_usd_{budget:.3g}", float(score))
            self.logger.record(f"held_out/spend_at_usd_{budget:.3g}", float(cost))
        if not self._others:
            self._others = {name: self._evaluated(router) for name, router in self.routers.items()}
        if last or self.progress.evaluations % FIGURE_EVERY == 0:
            figure = draw_curve(self.rules, "val", {"agent": result, **self._others})
            self.logger.record("held_out/score_over_spend", LoggedFigure(figure, close=False))
        self.progress.evaluations += 1
        best = max(self._others, key=lambda name: self._others[name].mean_score)
        tqdm.write(
            f"step {self.num_timesteps:>9,}: val score {result.mean_score:.4f}{' (kept)' if better else '':7}  "
            f"{best} {self._others[best].mean_score:.4f}"
        )

    def _evaluated(self, router: Router) -> Result:
        return evaluate(router, self.rules, self.budgets_usd, episodes_for(self.rules, VAL_QUERIES))

    def _is_better(self, result: Result) -> bool:
        """Whether the result is clearly above that of the saved policy."""
        if self.progress.evaluations == 0:
            return True
        if self._kept is None:  # a resumed run
            policy, description = load_policy(self.run_dir / "policy", self.model.device)
            if description.step == self.num_timesteps:
                return True  # stopped between saving this policy and the checkpoint
            self._kept = self._evaluated(PolicyRouter(policy, description, self.rules.features))
        return clearly_above(result, self._kept) and len(np.unique(result.rows)) > 1

    def _checkpoint(self) -> None:
        save_checkpoint(self.run_dir / "checkpoints", self.model, asdict(self.progress))


class _EventFile(TensorBoardOutputFormat):
    """SB3's TensorBoard output with a purge step."""

    def __init__(self, folder: str, purge_step: int | None):
        self.writer = SummaryWriter(log_dir=folder, purge_step=purge_step)
        self._is_closed = False


def tensorboard_logger(run_dir: Path, resumed_at: int) -> Logger:
    """A logger to one event file; TensorBoard hides what a killed run logged after the step that it is `resumed_at`."""
    return Logger(str(run_dir), [_EventFile(str(run_dir), resumed_at or None)])


def stop_on_interrupt(monitor: Monitor) -> Callable[[], None]:
    """Makes the first Ctrl-C end the run after the current iteration, the second at once; returns what undoes this."""
    before = signal.getsignal(signal.SIGINT)

    def stop(signum: int, frame: object) -> None:
        monitor.stopped = True
        signal.signal(signal.SIGINT, before)
        tqdm.write("stopping after this iteration; press Ctrl-C again to stop at once")

    signal.signal(signal.SIGINT, stop)

    def undo() -> None:
        signal.signal(signal.SIGINT, before)

    return undo
