"""PPO whose rollouts and updates stay on the table's device, as an algorithm of stable-baselines3."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from agents.distributed import ALONE, Processes
from agents.ppo.collector import Collector
from agents.ppo.loss import STATISTICS
from agents.ppo.updater import Updater, UpdateSettings, prepare_optimizer, set_learning_rate
from leeroo_env import InputError
from leeroo_env.sb3 import LeerooSB3VecEnv


class DevicePPO(PPO):
    """stable-baselines3's PPO (Schulman et al., Proximal policy optimization algorithms, 2017) on `LeerooSB3VecEnv`.

    Arguments, callbacks, logger, `save` and `load` are those of stable-baselines3, and from the same seed it learns the
    same, within rounding. Episodes, table, policy, rollout and minibatches are tensors on one device; nothing waits for
    the host within a rollout or an update, and a GPU replays captured steps. Two differences for a callback: at the
    last step of a rollout `locals["infos"]` has all episodes that ended in it, at the others none, and
    `model._last_obs` is what the last reset or checkpoint gave.

    Attributes:
        collector: plays the rollouts; None before the first one.
        updater: learns from them; None before the first update.
        processes: that learn together, each from its own episodes.
    """

    policy: ActorCriticPolicy
    processes: Processes = ALONE

    def _setup_model(self) -> None:
        self._check(self.env)
        self.rollout_buffer_class = _NoBuffer  # type: ignore[assignment]
        super()._setup_model()
        prepare_optimizer(self.policy.optimizer, self.device)
        self.collector: Collector | None = None
        self.updater: Updater | None = None

    def _check(self, env: Any) -> None:
        if not isinstance(env, LeerooSB3VecEnv | None):
            raise InputError(
                f"{type(env).__name__}: DevicePPO plays on a LeerooSB3VecEnv; stable_baselines3.PPO plays on any"
            )
        if env is not None and (at := env.env.rules.table.device).type != self.device.type:
            raise InputError(f"device {self.device}: DevicePPO learns where the table is, on {at}")

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        self._check(env)
        super().set_env(env, force_reset)

    def _maybe_recommend_cpu(self, mlp_class_name: str = "") -> None:
        """SB3 warns that its PPO gains nothing from a GPU; this one is made for it."""

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "collector", "updater", "processes", "rollout_buffer_class"]

    def collect_rollouts(self, env: Any, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Plays `n_rollout_steps` of every episode; False where a callback wants to stop."""
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        collector = self._make_collector(env, n_rollout_steps)
        collector.start(self._last_episode_starts)  # type: ignore[arg-type]
        infos: list[dict[str, Any]] = [{} for _ in range(env.num_envs)]
        dones = np.zeros(env.num_envs, dtype=bool)
        for step in range(n_rollout_steps):
            collector.step()
            self.num_timesteps += env.num_envs * self.processes.world
            last = step == n_rollout_steps - 1
            if last:
                infos = self._finish_rollout(collector, step)
                dones = np.array(["episode" in info for info in infos])
            callback.update_locals(locals())
            if not callback.on_step():
                if not last:
                    self._finish_rollout(collector, step)
                return False
        collector.storage.compute_advantages(collector.values(), self.gamma, self.gae_lambda)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _make_collector(self, env: LeerooSB3VecEnv, n_steps: int) -> Collector:
        """The last one, unless environment, rules, policy or length have changed."""
        last = self.collector
        same = last is not None and last.env is env.env and last.rules is env.env.rules
        if last is None or not same or last.policy is not self.policy or last.n_steps != n_steps:
            self.collector = last = Collector(env.env, self.policy, n_steps)
        return last

    def _finish_rollout(self, collector: Collector, step: int) -> list[dict[str, Any]]:
        infos = collector.finish()
        self._update_info_buffer(infos)
        self._last_episode_starts = collector.storage.starts[step + 1].bool().cpu().numpy()
        return infos

    def train(self) -> None:
        """Epochs of minibatches over the last rollout."""
        updater = self._make_updater()
        self.policy.set_training_mode(True)
        progress = self._current_progress_remaining
        clip = self.clip_range(progress)  # type: ignore[operator]
        clip_vf = torch.inf if self.clip_range_vf is None else self.clip_range_vf(progress)  # type: ignore[operator]
        rate = self.lr_schedule(progress)
        prepare_optimizer(self.policy.optimizer, self.device)  # loading has replaced its settings
        set_learning_rate(self.policy.optimizer, rate)
        updater.start(clip, clip_vf)
        n_updates, going = 0, True
        for _ in range(self.n_epochs):
            for indices in self._shuffled(*updater.storage.actions.shape).split(self.batch_size):
                going = going and updater.update(indices)
                n_updates += going
            self._n_updates += 1
            if not going:
                break
        self._log(updater, max(n_updates, 1), clip, rate)

    def _make_updater(self) -> Updater:
        """The last one, unless rollout storage or settings have changed."""
        assert self.collector is not None
        storage = self.collector.storage
        settings = UpdateSettings(
            self.ent_coef, self.vf_coef, self.max_grad_norm, self.normalize_advantage, self.target_kl
        )
        if self.updater is None or self.updater.storage is not storage or self.updater.settings != settings:
            self.updater = Updater(self.policy, storage, settings, self.processes)
        return self.updater

    def _shuffled(self, t: int, b: int) -> Tensor:
        """Indices of all steps of a rollout, [T x B]; on a CPU in the order of SB3, which counts along episodes."""
        if self.device.type != "cpu":
            return torch.randperm(t * b, device=self.device)
        drawn = np.random.permutation(t * b)  # noqa: NPY002 - SB3's generator
        return torch.from_numpy(drawn % t * b + drawn // t)

    def _log(self, updater: Updater, n_updates: int, clip: float, rate: float) -> None:
        returns, values = updater.storage.returns, updater.storage.values
        (explained,) = self.processes.mean([1 - (returns - values).var() / returns.var()])
        means = torch.cat([updater.statistics / n_updates, explained[None]]).tolist()  # one wait for the device
        logged = dict(zip((*STATISTICS, "explained_variance"), means, strict=True))
        if not np.isfinite(logged["loss"]):
            raise ValueError(f"the loss is {logged['loss']}: learning has diverged; try a lower rate")
        for name, value in (logged | {"learning_rate": rate, "clip_range": clip}).items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")


class _NoBuffer:
    """In place of SB3's buffer, which would hold every observation on the host."""

    def __init__(self, *_: Any, **__: Any):
        pass
