"""Advantages are those of stable-baselines3."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer

from agents.ppo.storage import RolloutStorage
from leeroo_env import ExpertTable, LeerooVectorEnv
from tests.agents.ppo.models import B, H


def test_advantages_are_those_of_sb3s_buffer(small: ExpertTable):
    env, rng, steps = LeerooVectorEnv(B, small, horizon=H), np.random.default_rng(0), 20
    ours = RolloutStorage(small.embeddings, steps, B, tail_width=2, digest_width=0)
    theirs = RolloutBuffer(
        steps, env.single_observation_space, env.single_action_space, gamma=0.97, gae_lambda=0.9, n_envs=B
    )
    starts = rng.random((steps + 1, B)) < 0.2
    theirs.rewards, theirs.values = rng.normal(size=(2, steps, B)).astype(np.float32)
    theirs.episode_starts = starts[:-1].astype(np.float32)
    for name in ("rewards", "values"):
        getattr(ours, name).copy_(torch.from_numpy(getattr(theirs, name)))
    ours.starts.copy_(torch.from_numpy(starts))
    last_values = torch.randn(B)
    theirs.compute_returns_and_advantage(last_values, starts[-1])
    ours.compute_advantages(last_values, 0.97, 0.9)
    np.testing.assert_allclose(ours.advantages.numpy(), theirs.advantages, atol=1e-5)
    np.testing.assert_allclose(ours.returns.numpy(), theirs.returns, atol=1e-5)
