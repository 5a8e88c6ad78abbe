"""Acts between training iterations: logs, evaluates on val, keeps the best policy, saves, and stops on Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure as LoggedFigure
from tqdm import tqdm

from agents.distributed import ALONE, Processes
from agents.evaluation.decision import AGENT, best_router
from agents.evaluation.evaluate import Result, clearly_above, episodes_for, evaluate
from agents.evaluation.plots import draw_curve
from agents.policies.bid_price import BidPricePolicy
from agents.policies.description import PolicyDescription
from agents.policies.io import load_policy, save_policy
from agents.progress import shown
from agents.routers import Router
from agents.routers.policy import PolicyRouter
from agents.training.checkpoint import save_checkpoint
from agents.training.tensorboard import about, hyperparameters, val_scalars
from leeroo_env.dynamics import Rules

VAL_QUERIES = 8_192
WARM_UP = 0.2  # share of the training in which a bid-price policy trains its critic alone
PATIENCE_S = 1.0  # after Ctrl-C, for an iteration to end
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
        policy_dir: Path,
        rules: Rules,
        budgets_usd: list[float],
        others: Callable[[bool], Mapping[str, Result]],
        start: Router,
        description: PolicyDescription,
        settings: dict[str, Any],
        timesteps: int,
        eval_every: int,
        log_every: int,
        processes: Processes = ALONE,
    ):
        """
        Args:
            run_dir: where to write.
            policy_dir: where to save the best policy.
            rules: on val.
            budgets_usd: [G], dollars a query, at which to evaluate.
            others: results of other routers on val at these budgets, by name; all of them where it is told to wait,
                else none while some are being played.
            start: the policy before training.
            description: of the policy, as `describe_policy` gives it.
            settings: for TensorBoard.
            timesteps: of the whole training.
            eval_every: steps between two evaluations.
            log_every: steps between two summaries of the episodes.
            processes: that train, of which this is the first.
        """
        super().__init__()
        self.run_dir, self.policy_dir, self.rules = run_dir, policy_dir, rules
        self.budgets_usd, self.others, self.start = budgets_usd, others, start
        self.description = description
        self.settings, self.timesteps = settings, timesteps
        self.eval_every, self.log_every, self.processes = eval_every, log_every, processes
        self.progress = Progress(evaluated_at=-eval_every)
        self.stopped = False
        self._episodes: list[dict[str, Any]] = []
        self._others: Mapping[str, Result] = {}
        self._start: Result | None = None
        self._kept: Result | None = None

    def _on_training_start(self) -> None:
        self.logger.record("hyperparameters", hyperparameters(self.settings))
        self.logger.record("about", about(self.settings, self.budgets_usd, self.rules.table.experts))
        whole = -(-self.timesteps // self.log_every) * self.log_every  # the last iteration is completed
        self._bar = shown("training", whole, "step", initial=self.num_timesteps)
        self._clock, self._clock_step = time.perf_counter(), self.num_timesteps

    def _on_rollout_start(self) -> None:
        train_actor_after_warm_up(self.model, self.timesteps)
        if self.processes.told(self.stopped):  # evaluated when it goes on: that can take longer than the user waits
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._checkpoint()
            raise Interrupted
        self._between_iterations()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if info:
                self._episodes.append(info["episode"])
        self._bar.update(self.num_timesteps - self._bar.n)
        return True

    def _on_training_end(self) -> None:
        self._between_iterations(last=True)
        if self.stopped:
            raise Interrupted

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
            self.logger.record("train/entropy", -self.logger.name_to_value.pop("train/entropy_loss"))
        if not self._episodes:
            return
        mean = {
            name: float(np.mean([e[name] for e in self._episodes])) for name in ("r", "score", "cost_usd", "cut_off")
        }
        self.logger.record("episode/return", mean["r"])
        self.logger.record("episode/score_per_query", mean["score"])
        self.logger.record("episode/spend_usd_per_query", mean["cost_usd"])
        self.logger.record("episode/cut_off_calls", mean["cut_off"])
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
        others = self._others = self._others or self.others(last)
        if better:
            self._kept = result
            self.progress.best, self.progress.best_step = result.mean_score, self.num_timesteps
            description = self.description.model_copy(update={"step": self.num_timesteps})
            save_policy(self.policy_dir, self.model.policy, description)
        if self._start is None:
            self._start = result if self.num_timesteps == 0 else self._evaluated(self.start)
        for tag, value in val_scalars(result, self._start, others, self.budgets_usd, self.rules.table.experts).items():
            self.logger.record(tag, value)
        self.logger.record("val/kept_score", self.progress.best)
        best = best_router(others)
        if last or self.progress.evaluations % FIGURE_EVERY == 0:
            figure = draw_curve(self.rules.table, "val", {AGENT: result, **others}, router=best)
            self.logger.record("val/score_over_dollars", LoggedFigure(figure, close=False))
        self.progress.evaluations += 1
        against = f", {result.mean_score - others[best].mean_score:+.4f} over {best}" if best else ""
        tqdm.write(
            f"step {self.num_timesteps:>9,}: val score {result.mean_score:.4f}, "
            f"{result.mean_score - self._start.mean_score:+.4f} over the start{against}{' (kept)' if better else ''}"
        )

    def _evaluated(self, router: Router) -> Result:
        return evaluate(router, self.rules, self.budgets_usd, episodes_for(self.rules, VAL_QUERIES))

    def _is_better(self, result: Result) -> bool:
        """Whether the result is clearly above that of the saved policy."""
        if self.progress.evaluations == 0:
            return True
        if self._kept is None:  # a resumed run
            policy, description = load_policy(self.policy_dir, self.model.device)
            if description.step == self.num_timesteps:
                return True  # stopped between saving this policy and the checkpoint
            self._kept = self._evaluated(PolicyRouter(policy, description, self.rules.features))
        return clearly_above(result, self._kept) and len(np.unique(result.rows)) > 1

    def _checkpoint(self) -> None:
        save_checkpoint(self.run_dir / "checkpoints", self.model, asdict(self.progress))


def train_actor_after_warm_up(model: BaseAlgorithm, timesteps: int) -> None:
    """Lets a bid-price policy train its critic alone in the first part of so many steps."""
    if isinstance(model.policy, BidPricePolicy):
        model.policy.train_actor(model.num_timesteps >= WARM_UP * timesteps)


def stop_on_interrupt(monitor: Monitor) -> Callable[[], None]:
    """Makes the first Ctrl-C end the run after the current iteration, and at once if that takes longer than
    `PATIENCE_S`; the second ends it at once. Returns what undoes this."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}

    def stop(signum: int, frame: object) -> None:
        monitor.stopped = True
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
        tqdm.write("stopping after this iteration; press Ctrl-C again to stop at once")

    signal.signal(signal.SIGINT, stop)

    def undo() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)

    return undo
