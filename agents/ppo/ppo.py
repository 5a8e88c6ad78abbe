"""PPO whose rollouts stay on the table's device: nothing waits for the host within a rollout or an update.

T steps of B episodes a rollout, n steps a minibatch, K actions, F what is stored of an observation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.optim.adam import adam

from agents.ppo.cuda_graph import capture
from agents.ppo.storage import Rollout
from leeroo_env import InputError
from leeroo_env.sb3 import LeerooSB3VecEnv

STATISTICS = ("policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction", "loss")


_OWN = ("_works", "_places", "_clips", "_sums", "_parameters", "_moments", "_changed", "_where")


class DevicePPO(PPO):
    """stable-baselines3's PPO (Schulman et al., Proximal policy optimization algorithms, 2017) on `LeerooSB3VecEnv`.

    Arguments, callbacks, logger, `save` and `load` are those of stable-baselines3, and from the same seed it learns the
    same, within rounding. Episodes, table, policy, rollout and minibatches are tensors on one device; a GPU replays
    captured steps. Different for a callback: `locals["infos"]` tells of all episodes that ended in a rollout at its
    last step, and `model._last_obs` is what the last reset or checkpoint gave.
    """

    policy: ActorCriticPolicy

    def _setup_model(self) -> None:
        self._check(self.env)
        self.rollout_buffer_class = _NoBuffer  # type: ignore[assignment]
        super()._setup_model()
        self.rollout: Rollout | None = None
        self._works: dict[Any, Callable[[], None]] = {}
        self._places: dict[int, Tensor] = {}
        self._clips = torch.zeros(2, device=self.device)
        self._sums = torch.zeros(len(STATISTICS), device=self.device)
        group, *more = self.policy.optimizer.param_groups
        if type(self.policy.optimizer) is not torch.optim.Adam or more or group["amsgrad"] or group["maximize"]:
            name = type(self.policy.optimizer).__name__
            raise InputError(f"optimizer {name}: DevicePPO learns by plain torch.optim.Adam with one parameter group")
        self._hold_learning_rate()

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
        return [*super()._excluded_save_params(), "rollout", "rollout_buffer_class", *_OWN]

    def collect_rollouts(self, env: Any, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Plays `n_rollout_steps` of every episode; False where a callback wants to stop."""
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        rollout = self._begin_rollout(env, n_rollout_steps)
        play = self._captured(("play", rollout.in_step), self._play, rollout.tensors())
        infos: list[dict[str, Any]] = [{} for _ in range(env.num_envs)]
        dones = np.zeros(env.num_envs, dtype=bool)
        for step in range(n_rollout_steps):
            play()
            rollout.end_step(step)
            self.num_timesteps += env.num_envs
            last = step == n_rollout_steps - 1
            if last:
                infos = self._hand_back(step)
                dones = np.array(["episode" in info for info in infos])
            callback.update_locals(locals())
            if not callback.on_step():
                if not last:
                    self._hand_back(step)
                return False
        with torch.no_grad():
            _, last_values = judge(self.policy, look(self.policy, rollout.observe()))
        rollout.estimate_advantages(last_values, self.gamma, self.gae_lambda)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _hand_back(self, step: int) -> list[dict[str, Any]]:
        """Lets the environment stand where `step` has led; what is told of the episodes that have ended."""
        assert self.rollout is not None
        infos = self.rollout.hand_back()
        self._update_info_buffer(infos)
        self._last_episode_starts = self.rollout.starts[step + 1].bool().cpu().numpy()
        return infos

    def _begin_rollout(self, env: LeerooSB3VecEnv, steps: int) -> Rollout:
        rollout = self.rollout
        if rollout is None or (rollout.env, rollout.steps) != (env.env, steps) or rollout.rules is not env.env.rules:
            self.rollout = rollout = Rollout(env.env, steps, digest_width(self.policy))
            self._works.clear()
        rollout.take_over(self._last_episode_starts)  # type: ignore[arg-type]
        return rollout

    @torch.no_grad()
    def _play(self) -> None:
        """One step of every episode."""
        assert self.rollout is not None
        seen = look(self.policy, self.rollout.observe())
        logits, values = judge(self.policy, seen)
        log_probs = torch.log_softmax(logits, dim=1)
        chances = torch.softmax(log_probs, dim=1)
        actions = (chances / torch.empty_like(chances).exponential_()).argmax(dim=1)  # torch.multinomial without a sync
        self.rollout.play(seen, actions, values, log_probs.gather(1, actions[:, None]).squeeze(1))

    def train(self) -> None:
        """Epochs of minibatches over the last rollout."""
        assert self.rollout is not None
        self.policy.set_training_mode(True)
        progress = self._current_progress_remaining
        clip = self.clip_range(progress)  # type: ignore[operator]
        clip_vf = torch.inf if self.clip_range_vf is None else self.clip_range_vf(progress)  # type: ignore[operator]
        self._set_learning_rate(self.lr_schedule(progress))
        self._clips.copy_(torch.tensor([clip, clip_vf]))
        self._sums.zero_()
        self._look_up()
        (t, b), updates, going = self.rollout.actions.shape, 0, True
        for _ in range(self.n_epochs):
            for places in self._order(t, b).split(self.batch_size):
                going = going and self._update(places)
                updates += going
            self._n_updates += 1
            if not going:
                break
        self._log(max(updates, 1), clip)

    def _order(self, t: int, b: int) -> Tensor:
        """The steps of a rollout, [T x B], shuffled; on a CPU as SB3 does, which counts along an episode's steps."""
        if self.device.type != "cpu":
            return torch.randperm(t * b, device=self.device)
        drawn = np.random.permutation(t * b)  # noqa: NPY002 - SB3's generator
        return torch.from_numpy(drawn % t * b + drawn // t)

    def _update(self, places: Tensor) -> bool:
        """One minibatch, `places` [n]. False where it is left out as the policy has moved too far for `target_kl`."""
        mine = self._places.setdefault(len(places), torch.empty_like(places))
        mine.copy_(places)
        if self.target_kl is not None:
            gradients, statistics = self._differentiate(mine)
            if float(statistics[STATISTICS.index("approx_kl")]) > 1.5 * self.target_kl:
                return False
            self._descend(gradients, statistics)
            return True
        key = ("update", len(places), self._where)
        self._captured(key, lambda: self._descend(*self._differentiate(mine)), self._changed)()
        return True

    def _captured(self, key: Any, work: Callable[[], None], changed: list[Tensor]) -> Callable[[], None]:
        if key not in self._works:
            self._works[key] = capture(work, changed, self.device)
        return self._works[key]

    def _differentiate(self, places: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Gradients of the loss in the parameters that learn, clipped, and `STATISTICS`."""
        assert self.rollout is not None
        seen, actions, log_probs, old_values, advantages, returns = self.rollout.gather(places)
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        outputs = judge(self.policy, seen)
        logits, values = (output.detach() for output in outputs)
        loss = (actions, log_probs, old_values, advantages, returns, self._clips, self.ent_coef, self.vf_coef)
        by_outputs, statistics = loss_gradients(logits, values, *loss)
        learnt = [(o, g) for o, g in zip(outputs, by_outputs, strict=True) if o.requires_grad]
        gradients = torch.autograd.grad([o for o, _ in learnt], self._parameters, [g for _, g in learnt])
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        return gradients, statistics

    @torch.no_grad()
    def _descend(self, gradients: Sequence[Tensor], statistics: Tensor) -> None:
        """A step of Adam, without what `Optimizer.step` looks up again each time."""
        group = self.policy.optimizer.param_groups[0]
        first, second, steps = self._moments
        adam(
            list(self._parameters), list(gradients), first, second, [], steps,
            amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], eps=group["eps"],
            weight_decay=group["weight_decay"], maximize=False, fused=True, capturable=group["capturable"],
        )  # fmt: skip
        self._sums += statistics

    def _look_up(self) -> None:
        """The parameters that learn in this iteration, and Adam's moments and steps, made where there are none yet."""
        state = self.policy.optimizer.state
        self._parameters = [p for p in self.policy.parameters() if p.requires_grad]
        for p in self._parameters:
            if not state[p]:
                step = torch.zeros((), device=p.device)
                state[p] |= {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        names = ("exp_avg", "exp_avg_sq", "step")
        self._moments = [[state[p][name] for p in self._parameters] for name in names]
        self._changed = [self._sums, *self._parameters, *(tensor for part in self._moments for tensor in part)]
        rate = self.policy.optimizer.param_groups[0]["lr"]
        seen = [*self._changed, rate] if isinstance(rate, Tensor) else self._changed
        self._where = tuple(tensor.data_ptr() for tensor in seen)  # loading puts other tensors in their place

    def _hold_learning_rate(self) -> None:
        """On a GPU as a tensor: a captured step sees only tensors change."""
        group = self.policy.optimizer.param_groups[0]
        if self.device.type == "cuda" and not isinstance(group["lr"], Tensor):
            group |= {"capturable": True, "lr": torch.tensor(float(group["lr"]), device=self.device)}

    def _set_learning_rate(self, rate: float) -> None:
        self.logger.record("train/learning_rate", rate)
        self._hold_learning_rate()
        group = self.policy.optimizer.param_groups[0]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate

    def _log(self, updates: int, clip: float) -> None:
        assert self.rollout is not None
        returns, values = self.rollout.returns, self.rollout.values
        explained = 1 - (returns - values).var() / returns.var()
        read = torch.cat([self._sums / updates, explained[None]]).tolist()
        if not np.isfinite(read[STATISTICS.index("loss")]):
            raise ValueError(f"the loss is {read[STATISTICS.index('loss')]}: learning has diverged; try a lower rate")
        for name, value in zip((*STATISTICS, "explained_variance"), read, strict=True):
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip)


def digest_width(policy: ActorCriticPolicy) -> int:
    """F of the digest that a policy makes of observations; 0 where it makes none."""
    return getattr(policy, "digest_width", 0)


def look(policy: ActorCriticPolicy, observations: Tensor) -> Tensor:
    """What is stored of observations [B, D + ...]: their digest [B, F], or they themselves."""
    return policy.digest(observations) if digest_width(policy) else observations  # type: ignore[operator]


def judge(policy: ActorCriticPolicy, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, K] and values [B] of what `look` gave."""
    if digest_width(policy):
        return policy.evaluate_digest(seen)  # type: ignore[operator]
    features = policy.extract_features(seen)
    if isinstance(features, tuple):
        latent_pi = policy.mlp_extractor.forward_actor(features[0])
        latent_vf = policy.mlp_extractor.forward_critic(features[1])
    else:
        latent_pi, latent_vf = policy.mlp_extractor(features)
    return policy.action_net(latent_pi), policy.value_net(latent_vf).squeeze(1)


def loss_gradients(
    logits: Tensor,
    values: Tensor,
    actions: Tensor,
    old_log_probs: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    clips: Tensor,
    ent_coef: float,
    vf_coef: float,
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The derivatives of PPO's loss in logits [n, K] and values [n], in closed form, and `STATISTICS`.

    Automatic differentiation of the loss takes longer than that of a small network.

    Args:
        logits: [n, K].
        values: [n].
        actions: [n] int64, taken with `old_log_probs` [n], and `old_values` [n] estimated.
        advantages: [n], normalised or not.
        returns: [n].
        clips: [2], of the ratio of probabilities and of the change of values, infinite for none.
        ent_coef: weight of the entropy.
        vf_coef: weight of the squared error of values.
    """
    n = len(values)
    log_probs = torch.log_softmax(logits, dim=1)
    chances, at = log_probs.exp(), actions[:, None]
    log_ratio = log_probs.gather(1, at).squeeze(1) - old_log_probs
    ratio = log_ratio.exp()
    clip, clip_vf = clips
    surrogate, clipped = advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)
    policy_loss = -torch.minimum(surrogate, clipped).mean()
    weight = surrogate * (surrogate <= clipped) / -n
    negative_entropy = (chances * log_probs).sum(dim=1)
    by_logits = chances * (ent_coef / n * (log_probs - negative_entropy[:, None]) - weight[:, None])
    by_logits.scatter_add_(1, at, weight[:, None])
    moved = values - old_values
    error = old_values + moved.clamp(-clip_vf, clip_vf) - returns
    by_values = 2 * vf_coef / n * error * (moved.abs() <= clip_vf)
    value_loss, entropy_loss = error.square().mean(), negative_entropy.mean()
    loss = policy_loss + ent_coef * entropy_loss + vf_coef * value_loss
    kl, outside = (ratio - 1 - log_ratio).mean(), ((ratio - 1).abs() > clip).float().mean()
    return (by_logits, by_values), torch.stack([policy_loss, value_loss, entropy_loss, kl, outside, loss])


class _NoBuffer:
    """In place of SB3's buffer, which would hold every observation on the host."""

    def __init__(self, *_: Any, **__: Any):
        pass
