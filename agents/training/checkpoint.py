"""Checkpoints: saves and restores all of the state that decides how a run continues, without pickle.

On-policy algorithms are saved between two iterations and continue to the same bits on a CPU. Off-policy algorithms
continue with an empty replay buffer.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from agents.policies.io import with_current_names
from leeroo_env import InputError
from leeroo_env.files import new_directory, read_json, read_tensors, write_json, write_tensors
from leeroo_env.sb3 import LeerooSB3VecEnv

KEEP = 2
COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_episode_num",
    "_n_calls",
    "_current_progress_remaining",
    "exploration_rate",
)


def save_checkpoint(directory: Path, model: BaseAlgorithm, progress: dict[str, Any]) -> None:
    """Writes `directory/step-N/` atomically and deletes all but the last two checkpoints.

    Args:
        directory: the run's `checkpoints/`.
        model: between two iterations, its environment a `LeerooSB3VecEnv`.
        progress: what else the run has to remember, as JSON values.
    """
    with new_directory(directory / f"step-{model.num_timesteps:012d}") as checkpoint:
        write_tensors(checkpoint / "state.safetensors", _tensors(model))
        write_json(checkpoint / "state.json", {**_numbers(model), "progress": progress})
    for old in [*sorted(directory.glob("step-*"))[:-KEEP], *directory.glob(".step-*.tmp")]:  # and what a kill left
        shutil.rmtree(old)


def _tensors(model: BaseAlgorithm) -> dict[str, Tensor]:
    """Policy, optimiser, environment and torch's random generators."""
    optimizer = model.policy.optimizer.state_dict()["state"]
    tensors = {f"policy.{name}": value for name, value in model.policy.state_dict().items()}
    tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for i, state in optimizer.items() for k, v in state.items()}
    tensors |= {f"env.{name}": value for name, value in _environment(model).state_dict().items()}
    tensors |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors | {"rng.torch": torch.get_rng_state()}


def _numbers(model: BaseAlgorithm) -> dict[str, Any]:
    """Counters and the other random generators, as JSON values."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - SB3 shuffles with it
    return {
        "counters": {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)},
        "episode_starts": np.asarray(model._last_episode_starts).tolist(),
        "rng": {
            "python": [version, list(internal), gauss],
            "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        },
    }


def latest_checkpoint(directory: Path) -> Path | None:
    """The last checkpoint in a run's `checkpoints/`; None where there is none yet."""
    return max(directory.glob("step-*"), default=None)


def restore_checkpoint(path: Path, model: BaseAlgorithm) -> dict[str, Any]:
    """Restores the state of a new model and its environment; returns the `progress` that was saved with it.

    Raises:
        InputError: the checkpoint is broken or belongs to another table, algorithm or network.
    """
    tensors, state = read_tensors(path / "state.safetensors"), read_json(path / "state.json")
    try:
        model.policy.load_state_dict(with_current_names(_part(tensors, "policy.")))
        _restore_optimizer(model.policy.optimizer, _part(tensors, "optimizer."))
        model._last_obs = _environment(model).load_state_dict(_part(tensors, "env."))
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: does not fit this run: {str(error).splitlines()[0]}") from None
    model._last_episode_starts = np.array(state["episode_starts"])
    for name, value in state["counters"].items():
        setattr(model, name, value)
    version, internal, gauss = state["rng"]["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["rng"]["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(tensors["rng.torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(list(_part(tensors, "rng.cuda.").values()))
    return state["progress"]


def _environment(model: BaseAlgorithm) -> Any:
    assert isinstance(model.env, LeerooSB3VecEnv)
    return model.env.env


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in stored.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
