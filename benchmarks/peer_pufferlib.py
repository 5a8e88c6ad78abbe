"""PufferLib's PPO on `make_vec("Leeroo-v0")`: prints its steps a second, which `speed.py` puts beside ours.

python3.11 -m venv peers && peers/bin/pip install . setuptools gym-notices psutil pynvml pyro-ppl rich-argparse
echo "import builtins; builtins.c_extension_paths = []" > peers/lib/python3.11/site-packages/no_ocean.pth
NO_OCEAN=1 peers/bin/pip install --no-deps --no-build-isolation gym==0.23.0 pufferlib==3.0.0
peers/bin/python benchmarks/peer_pufferlib.py TABLE ENVS STEPS BATCH_SIZE EPOCHS ITERATIONS

NO_OCEAN leaves out its own games, which it would download libraries for, and with it a name of its setup.py, which the
.pth file gives; --no-deps because it asks for a Gymnasium and a numpy from before ours. Where there is an nvcc without
the rest of CUDA, take it out of PATH.

The batch of episodes is one of its native environments. Networks are 64x64, apart for actor and critic, as ours, the
optimizer is Adam, and the rest its defaults. Time counts from the second iteration on.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import gymnasium
import numpy as np
import torch
from torch import nn

import leeroo_env  # noqa: F401 - registers the environment


class Policy(nn.Module):
    """Logits and values, by two networks."""

    def __init__(self, inputs: int, actions: int):
        super().__init__()
        self.actor, self.critic = (
            nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
            for outputs in (actions, 1)
        )

    def forward_eval(self, observations: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.actor(observations), self.critic(observations)

    forward = forward_eval


def main(table: str, n_envs: int, n_steps: int, batch_size: int, n_epochs: int, iterations: int) -> float:
    """Steps a second of all iterations but the first."""
    torch.set_num_threads(1)
    import pufferlib
    from pufferlib.pufferl import PuffeRL

    class Batch(pufferlib.PufferEnv):
        num_agents = n_envs

        def __init__(self) -> None:
            self.batch: Any = gymnasium.make_vec("Leeroo-v0", n_envs, table=table)
            self.single_observation_space = self.batch.single_observation_space
            self.single_action_space = self.batch.single_action_space
            super().__init__()

        def reset(self, seed: int | None = None) -> tuple[np.ndarray, list[dict]]:
            self.observations[:] = self.batch.reset(seed=seed)[0]
            return self.observations, []

        def step(self, actions: np.ndarray) -> tuple[Any, ...]:
            self.observations[:], self.rewards[:], self.terminals[:], self.truncations[:], _ = self.batch.step(actions)
            return self.observations, self.rewards, self.terminals, self.truncations, []

        def close(self) -> None:
            self.batch.close()

    defaults = configparser.ConfigParser()
    defaults.read(Path(pufferlib.__file__).parent / "config" / "default.ini")
    config: dict[str, Any] = {}
    for name, value in defaults["train"].items():
        try:
            config[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            config[name] = value
    config |= {"device": "cpu", "optimizer": "adam", "use_rnn": False, "bptt_horizon": n_steps, "env": "Leeroo-v0"}
    config |= {"minibatch_size": batch_size, "update_epochs": n_epochs}
    config |= {"total_timesteps": (iterations + 1) * n_steps * n_envs}  # the last one would write a checkpoint
    env = Batch()
    trainer = PuffeRL(config, env, Policy(env.observations.shape[1], env.batch.single_action_space.n))
    for iteration in range(iterations):
        if iteration == 1:
            began = time.perf_counter()
        trainer.evaluate()
        trainer.train()
    seconds = time.perf_counter() - began
    trainer.utilization.stop()
    return (iterations - 1) * n_steps * n_envs / seconds


if __name__ == "__main__":
    table_directory = sys.argv[1]
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(sys.stderr):
        os.chdir(directory)  # where it puts a link
        speed = main(table_directory, *map(int, sys.argv[2:]))
        os.chdir("/")
    print(speed)
