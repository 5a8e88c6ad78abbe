"""Stores the steps of a rollout as tensors on one device and computes their advantages.

Shapes: T steps of B episodes, n steps of a minibatch, D features of a query, F features of a digest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Minibatch:
    """n steps of a rollout; all [n], and `inputs` [n, ...] as of `agents.ppo.policy_inputs`."""

    inputs: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class RolloutStorage:
    """T steps of B episodes. Tensors keep their addresses, so that work on them can be captured.

    Attributes:
        step: [1] int64, the number of steps stored.
        rows: [T, B] int64, the queries, whose features are looked up again in minibatches.
        tail: [T, B, ...], the rest of the observations; without columns where there are digests.
        digest: [T, B, F], digests in place of observations; without columns where the policy makes none.
        starts: [T + 1, B], 1 where an episode begins with the step.
        actions: [T, B] int64.
        rewards: [T, B], as `values`, `log_probs`, `advantages` and `returns`.
    """

    def __init__(self, features: Tensor, n_steps: int, n_envs: int, tail_width: int, digest_width: int):
        """Makes room.

        Args:
            features: [N, D], of the queries.
            n_steps: T.
            n_envs: B.
            tail_width: features of an observation after those of the query.
            digest_width: F, or 0 to store observations.
        """
        self._features, device = features, features.device
        self.step = torch.zeros(1, device=device).long()
        self.rows, self.actions = torch.zeros(2, n_steps, n_envs, dtype=torch.int64, device=device)
        self.tail = torch.zeros(n_steps, n_envs, 0 if digest_width else tail_width, device=device)
        self.digest = torch.zeros(n_steps, n_envs, digest_width, device=device)
        floats = torch.zeros(5, n_steps, n_envs, device=device)
        self.rewards, self.values, self.log_probs, self.advantages, self.returns = floats
        self.starts = torch.zeros(n_steps + 1, n_envs, device=device)

    def tensors(self) -> list[Tensor]:
        """All that `add` changes, among others."""
        return [value for name, value in vars(self).items() if name != "_features"]

    def restart(self, starts: Tensor) -> None:
        """Makes room for the next rollout; `starts` [B], whether episodes are at their first step."""
        self.starts.zero_()[0] = starts
        self.step.zero_()

    def add(
        self,
        rows: Tensor,
        inputs: Tensor,
        actions: Tensor,
        values: Tensor,
        log_probs: Tensor,
        rewards: Tensor,
        ended: Tensor,
    ) -> None:
        """Stores one step, all [B] and `inputs` [B, ...]."""
        own = (self.digest, inputs) if self.digest.shape[2] else (self.tail, inputs[:, self._features.shape[1] :])
        for storage, value in (
            own,
            (self.rows, rows),
            (self.actions, actions),
            (self.rewards, rewards),
            (self.values, values),
            (self.log_probs, log_probs),
        ):
            storage.index_copy_(0, self.step, value[None])
        self.step += 1
        self.starts.index_copy_(0, self.step, ended.float()[None])

    def compute_advantages(self, last_values: Tensor, gamma: float, gae_lambda: float) -> None:
        """Generalised advantage estimation (Schulman et al., 2016), from the values [B] after the last step."""
        advantage, next_values = torch.zeros_like(last_values), last_values
        continues = 1.0 - self.starts[1:]
        errors = self.rewards - self.values
        for t in range(len(errors) - 1, -1, -1):
            error = errors[t] + gamma * next_values * continues[t]
            advantage = error + gamma * gae_lambda * continues[t] * advantage
            self.advantages[t] = advantage
            next_values = self.values[t]
        torch.add(self.advantages, self.values, out=self.returns)

    def minibatch(self, indices: Tensor) -> Minibatch:
        """The steps at `indices` [n] into the T x B steps."""
        if self.digest.shape[2]:
            inputs = self.digest.flatten(0, 1).index_select(0, indices)
        else:
            features = self._features.index_select(0, self.rows.view(-1).index_select(0, indices)).float()
            inputs = torch.cat([features, self.tail.flatten(0, 1).index_select(0, indices)], dim=1)
        others = (self.actions, self.log_probs, self.values, self.advantages, self.returns)
        return Minibatch(inputs, *(x.view(-1).index_select(0, indices) for x in others))
