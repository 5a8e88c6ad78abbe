"""CleanRL's one-file PPO on `make_vec("Leeroo-v0")`: prints its steps a second, which `speed.py` puts beside ours.

python3.11 -m venv peers && peers/bin/pip install . setuptools && peers/bin/pip install --no-deps cleanrl==0.4.8
peers/bin/python benchmarks/peer_cleanrl.py TABLE ENVS STEPS BATCH_SIZE EPOCHS ITERATIONS

The file runs as it is on PyPI. It was written for gym, which Gymnasium has replaced, and for a list of environments:
here `gym` is Gymnasium, and the list is one `make_vec`. Networks (64x64, apart for actor and critic) and the rest are
its defaults. Time counts from its second iteration on.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import gymnasium
import numpy as np
import stable_baselines3.common.vec_env as vec_env
import torch

import leeroo_env  # noqa: F401 - registers the environment
from leeroo_env.sb3 import LeerooSB3VecEnv


def main(table: str, n_envs: int, n_steps: int, batch_size: int, n_epochs: int, iterations: int) -> float:
    """Steps a second of all iterations but the first."""
    torch.set_num_threads(1)
    began: list[float] = []  # of every step

    class Batch(LeerooSB3VecEnv):
        def __init__(self, makers: list[Any]):
            batch: Any = gymnasium.make_vec("Leeroo-v0", len(makers), table=table)
            super().__init__(batch)

        def step_async(self, actions: np.ndarray) -> None:
            began.append(time.perf_counter())
            super().step_async(actions)

    gym, wrappers = ModuleType("gym"), ModuleType("gym.wrappers")
    wrappers.__dict__.update(TimeLimit=None, Monitor=None)  # imported and not used
    gym.__dict__.update(wrappers=wrappers, spaces=gymnasium.spaces)
    sys.modules.update({"gym": gym, "gym.wrappers": wrappers, "gym.spaces": gymnasium.spaces})
    vec_env.DummyVecEnv = Batch  # type: ignore[misc, assignment]
    steps = {"num-envs": n_envs, "num-steps": n_steps, "total-timesteps": iterations * n_steps * n_envs}
    updates = {"n-minibatch": n_envs * n_steps // batch_size, "update-epochs": n_epochs}
    options = {"gym-id": "Leeroo-v0", "cuda": False, **steps, **updates}
    sys.argv = ["ppo", *(f"--{name}={value}" for name, value in options.items())]
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(sys.stderr):
        os.chdir(directory)  # it writes to runs/
        runpy.run_module("cleanrl.ppo", run_name="__main__")
        ended = time.perf_counter()
        os.chdir("/")
    return (iterations - 1) * n_steps * n_envs / (ended - began[n_steps])


if __name__ == "__main__":
    print(main(sys.argv[1], *map(int, sys.argv[2:])))
