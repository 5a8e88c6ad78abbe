"""Plays a policy in many episodes at once and stores the rollout, without synchronisation with the host in between.

Shapes: T steps of B episodes, K actions.
"""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from agents.ppo.cuda_graph import Captures
from agents.ppo.policy_inputs import digest_width, evaluate_inputs, policy_inputs
from agents.ppo.storage import RolloutStorage
from leeroo_env import LeerooVectorEnv, dynamics
from leeroo_env.dynamics import State
from leeroo_env.env import episode_statistics

EPISODE_FIELDS = ("steps", "score", "budget_usd", "left_usd", "cut_off", "calls")  # of the state, for statistics


class Collector:
    """Plays the episodes of a vector environment on its device; `start`, `step` T times, then `finish`.

    Attributes:
        env: the vector environment, which stays where it was until `finish`.
        rules: those of the environment.
        policy: chooses actions at random with its probabilities.
        storage: the rollout.
        state: of the episodes.
        in_step: whether all episodes end at the same step, so that the host knows when.
    """

    def __init__(self, env: LeerooVectorEnv, policy: ActorCriticPolicy, n_steps: int):
        self.env, self.rules, self.policy, self.n_steps = env, env.rules, policy, n_steps
        b, device = env.num_envs, env.rules.table.device
        tail_width = env.state.call_features.shape[1] + 2
        self.storage = RolloutStorage(env.rules.features, n_steps, b, tail_width, digest_width(policy))
        self.state = _copy(env.state)
        self.in_step = False
        self._return = torch.zeros(b, dtype=torch.float64, device=device)  # of each episode so far
        self._n_begun = torch.zeros(b, device=device).long()  # episodes that have begun in this rollout
        most = 1 + (n_steps - 1) // self.rules.horizon
        self._upcoming = tuple(torch.stack([part] * most) for part in (self.state.rows, self.state.budget_usd))
        self._ended = {name: torch.stack([value] * n_steps) for name, value in self._episodes().items()}  # [T, B]
        self._t = 0
        self._captures = Captures(device)
        self._clock = time.perf_counter()

    def start(self, starts: np.ndarray) -> None:
        """Takes over the environment's episodes; `starts` [B], whether they are at their first step."""
        _assign(self.state, self.env.state)
        self._return.copy_(self.env.returns)
        for own, upcoming in zip(self._upcoming, self.env.upcoming(len(self._upcoming[0])), strict=True):
            own.copy_(upcoming)
        self._n_begun.zero_()
        self.storage.restart(torch.as_tensor(starts, device=self._return.device))
        t = self.state.t
        self.in_step = self.rules.max_calls == 1 and bool((t == t[0]).all())
        self._t = int(t[0])

    def step(self) -> None:
        """One step of every episode; those that end are followed by the next."""
        self._captures.get(self.in_step, self._play, self.tensors())()
        self._t += 1
        if self.in_step and self._t % self.rules.horizon == 0:
            self._begin_next(self.state.t >= self.rules.horizon)

    def finish(self) -> list[dict[str, Any]]:
        """Moves the environment to where the episodes are now.

        Returns:
            SB3's infos of the episodes that ended, in their order, filled up to B with empty ones.
        """
        self.env.continue_from(_copy(self.state), self._n_begun, self._return)
        ended = self.storage.starts[1:].nonzero().cpu()
        index = tuple(ended.to(self._return.device).T)
        values = {name: value[index] for name, value in self._ended.items()}
        returns = values.pop("return").cpu().numpy()
        seconds = np.full(len(returns), time.perf_counter() - self._clock)
        statistics = episode_statistics(self.rules, replace(self.state, **values), returns, seconds)
        infos = [{"episode": {name: value[i] for name, value in statistics.items()}} for i in range(len(returns))]
        return infos + [{} for _ in range(self.env.num_envs - len(infos))]

    @torch.no_grad()
    def values(self) -> Tensor:
        """[B], the policy's values of the present state."""
        return evaluate_inputs(self.policy, policy_inputs(self.policy, dynamics.observe(self.rules, self.state)))[1]

    def tensors(self) -> list[Tensor]:
        """All that a step changes."""
        own = [self._return, self._n_begun, *vars(self.state).values(), *self._ended.values()]
        return [*own, *self.storage.tensors()]

    @torch.no_grad()
    def _play(self) -> None:
        inputs = policy_inputs(self.policy, dynamics.observe(self.rules, self.state))
        logits, values = evaluate_inputs(self.policy, inputs)
        log_probs = torch.log_softmax(logits, dim=1)
        chances = torch.softmax(log_probs, dim=1)
        actions = (chances / torch.empty_like(chances).exponential_()).argmax(dim=1)  # torch.multinomial without a sync
        log_probs = log_probs.gather(1, actions[:, None]).squeeze(1)
        rows = dynamics.current_rows(self.state)
        after, outcome = dynamics.step(self.rules, self.state, actions)
        self.storage.add(rows, inputs, actions, values, log_probs, outcome.reward, outcome.terminated)
        self._return += outcome.reward
        _assign(self.state, after)
        if not self.in_step:
            self._begin_next(outcome.terminated)

    def _begin_next(self, ended: Tensor) -> None:
        """Keeps the statistics of the episodes that have `ended` [B] with the last step and begins their next."""
        for name, value in self._episodes().items():
            self._ended[name].index_copy_(0, self.storage.step - 1, value[None])
        episode, b = self._n_begun.clamp(max=len(self._upcoming[0]) - 1), len(self._n_begun)
        each = torch.arange(b, device=episode.device)
        rows, budget_usd = (part[episode, each] for part in self._upcoming)
        new = dynamics.new_episodes(self.rules, rows, budget_usd)
        _assign(self.state, dynamics.replace_ended(self.state, ended, new))
        self._n_begun += ended
        self._return *= ~ended

    def _episodes(self) -> dict[str, Tensor]:
        """[B] each, what the statistics of an episode are computed from."""
        return {"return": self._return, **{name: getattr(self.state, name) for name in EPISODE_FIELDS}}


def _copy(state: State) -> State:
    """A copy that shares no memory."""
    return State(**{field.name: getattr(state, field.name).clone() for field in fields(State)})


def _assign(state: State, new: State) -> None:
    """Copies `new` into `state` in place."""
    for field in fields(State):
        own, other = getattr(state, field.name), getattr(new, field.name)
        if own is not other:
            own.copy_(other)
