"""Episodes on the table's device: played, stored and begun again without a word to the host.

T steps of B episodes, H queries an episode, K experts, D features of a query, F what a policy makes of an observation.
"""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leeroo_env import LeerooVectorEnv, dynamics
from leeroo_env.dynamics import State
from leeroo_env.env import episode_statistics


class Rollout:
    """What T steps of B episodes brought. Tensors keep their places, so that work on them can be captured.

    Attributes:
        state: where the episodes stand.
        rows: [T, B] int64, the rows of the table that were asked about: features are looked up again in minibatches.
        tail: [T, B, ...], the rest of the observations.
        digest: [T, B, F], in place of both what the policy made of them, where it does so once and for all.
        starts: [T + 1, B], 1 where an episode begins with this step.
        actions: [T, B] int64.
        rewards: [T, B], like `values`, `log_probs`, `advantages` and `returns`.
    """

    def __init__(self, env: LeerooVectorEnv, steps: int, digest_width: int):
        self.env, self.steps, self.rules = env, steps, env.rules
        b, device = env.num_envs, env.rules.table.device
        tail = 0 if digest_width else env.state.call_features.shape[1] + 2
        self.rows, self.actions = torch.zeros(2, steps, b, dtype=torch.int64, device=device)
        self.tail = torch.zeros(steps, b, tail, device=device)
        self.digest = torch.zeros(steps, b, digest_width, device=device)
        floats = torch.zeros(5, steps, b, device=device)
        self.rewards, self.values, self.log_probs, self.advantages, self.returns = floats
        self.starts = torch.zeros(steps + 1, b, device=device)
        self.state = _own(env.state)
        self.earned = torch.zeros(b, dtype=torch.float64, device=device)
        self._at, self._begun = torch.zeros(1, device=device).long(), torch.zeros(b, device=device).long()
        most = 1 + (steps - 1) // self.rules.horizon  # episodes of one environment that can begin within a rollout
        self._upcoming = tuple(torch.stack([part] * most) for part in (self.state.rows, self.state.budget_usd))
        self._last = {name: torch.stack([value] * steps) for name, value in self._shown().items()}
        self._clock = time.perf_counter()

    def take_over(self, starts: np.ndarray) -> None:
        """Goes on where the environment stands; `starts` [B], the episodes that are at their first step."""
        _put(self.state, self.env.state)
        self.earned.copy_(self.env.returns)
        for mine, theirs in zip(self._upcoming, self.env.upcoming(len(self._upcoming[0])), strict=True):
            mine.copy_(theirs)
        self.starts.zero_()[0] = torch.as_tensor(starts, device=self.starts.device)
        self._at.zero_(), self._begun.zero_()
        t = self.state.t
        self.in_step = self.rules.max_calls == 1 and bool((t == t[0]).all())
        self._played = int(t[0])

    def tensors(self) -> list[Tensor]:
        """All that `play` changes."""
        own = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return [*own, *vars(self.state).values(), *self._last.values()]

    def observe(self) -> Tensor:
        """[B, D + ...], as the environment's observations."""
        return dynamics.observe(self.rules, self.state)

    def play(self, seen: Tensor, actions: Tensor, values: Tensor, log_probs: Tensor) -> None:
        """One step: takes `actions` [B] and stores what was `seen`, an observation or a digest of it, and came of it.

        Where episodes are not `in_step`, those that end are followed by their next.
        """
        state = self.state
        rows = dynamics.current_rows(state)
        after, outcome = dynamics.step(self.rules, state, actions)
        digests = self.digest.shape[2] > 0
        parts = (self.digest, seen) if digests else (self.tail, seen[:, self.rules.features.shape[1] :])
        self._store(parts, (self.rows, rows), (self.actions, actions), (self.rewards, outcome.reward))
        self._store((self.values, values), (self.log_probs, log_probs))
        self._at += 1
        self._store((self.starts, outcome.terminated.float()))
        self.earned += outcome.reward
        _put(self.state, after)
        if not self.in_step:
            self._begin_next(outcome.terminated)

    def end_step(self, number: int) -> None:
        """What the host does after step `number`: it knows when episodes that are `in_step` end."""
        if self.in_step and (self._played + number + 1) % self.rules.horizon == 0:
            self._begin_next(self.state.t >= self.rules.horizon)

    def _begin_next(self, ended: Tensor) -> None:
        """Tells of the episodes that have `ended` [B] with the last step and begins their next."""
        for name, value in self._shown().items():
            self._last[name].index_copy_(0, self._at - 1, value[None])
        rows, budget_usd = (part[self._begun.clamp(max=len(part) - 1), self._each()] for part in self._upcoming)
        fresh = dynamics.new_episodes(self.rules, rows, budget_usd)
        _put(self.state, dynamics.replace_ended(self.state, ended, fresh))
        self._begun += ended
        self.earned *= ~ended

    def _each(self) -> Tensor:
        return torch.arange(len(self._begun), device=self._begun.device)

    def _shown(self) -> dict[str, Tensor]:
        names = ("steps", "score", "budget_usd", "left_usd", "refused", "calls")
        return {"earned": self.earned, **{name: getattr(self.state, name) for name in names}}

    def _store(self, *pairs: tuple[Tensor, Tensor]) -> None:
        for storage, value in pairs:
            storage.index_copy_(0, self._at, value[None])

    def hand_back(self) -> list[dict[str, Any]]:
        """Lets the environment stand where this has come to. Returns what SB3 is told of the episodes that ended, in
        their order; B entries or more, the rest empty."""
        self.env.go_on(_own(self.state), self._begun, self.earned)
        ended = self.starts[1:].nonzero().cpu()
        ended_at = tuple(ended.to(self.starts.device).T)
        last = {name: value[ended_at] for name, value in self._last.items()}
        earned = last.pop("earned").cpu().numpy()
        state = replace(self.state, **last)
        seconds = np.full(len(earned), time.perf_counter() - self._clock)
        told = episode_statistics(self.rules, state, earned, seconds)
        infos = [{"episode": {name: values[i] for name, values in told.items()}} for i in range(len(earned))]
        return infos + [{} for _ in range(self.env.num_envs - len(infos))]

    def gather(self, places: Tensor) -> tuple[Tensor, ...]:
        """What the minibatch at `places` [n] of the N = T x B steps has seen, [n, ...], and its actions, log_probs,
        values, advantages and returns, [n]."""
        seen = (
            self.digest.flatten(0, 1).index_select(0, places)
            if self.digest.shape[2]
            else torch.cat(
                [
                    self.rules.features.index_select(0, self.rows.view(-1).index_select(0, places)).float(),
                    self.tail.flatten(0, 1).index_select(0, places),
                ],
                dim=1,
            )
        )
        others = (self.actions, self.log_probs, self.values, self.advantages, self.returns)
        return seen, *(x.view(-1).index_select(0, places) for x in others)

    def estimate_advantages(self, last_values: Tensor, gamma: float, gae_lambda: float) -> None:
        """Generalised advantage estimation (Schulman et al., 2016), from the values [B] of where the episodes stand."""
        advantage, next_values = torch.zeros_like(last_values), last_values
        goes_on = 1.0 - self.starts[1:]
        errors = self.rewards - self.values
        for t in range(self.steps - 1, -1, -1):
            error = errors[t] + gamma * next_values * goes_on[t]
            advantage = error + gamma * gae_lambda * goes_on[t] * advantage
            self.advantages[t] = advantage
            next_values = self.values[t]
        torch.add(self.advantages, self.values, out=self.returns)


def _own(state: State) -> State:
    """A copy no field of which shares memory with anything."""
    return State(**{field.name: getattr(state, field.name).clone() for field in fields(State)})


def _put(state: State, new: State) -> None:
    """Makes `state` what `new` is, in place."""
    for field in fields(State):
        mine, theirs = getattr(state, field.name), getattr(new, field.name)
        if mine is not theirs:
            mine.copy_(theirs)
