"""Checkpoints: saves and restores all of the state that decides how a run continues, without pickle.

On-policy algorithms are saved between two iterations and continue to the same bits on a CPU. Off-policy algorithms
continue with an empty replay buffer.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydantic
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from agents.policies.io import with_current_names
from leeroo_env import InputError
from leeroo_env.errors import UNFIT, first_line
from leeroo_env.files import new_directory, read_model, read_tensors, write_json, write_tensors
from leeroo_env.manifest import check_files, missing_manifest
from leeroo_env.sb3 import LeerooSB3VecEnv

KEEP = 2
P = TypeVar("P")


class Counters(pydantic.BaseModel, extra="forbid"):
    """What algorithms of stable-baselines3 count, under their names there; None where one does not."""

    num_timesteps: int = pydantic.Field(ge=0)
    n_updates: int | None = pydantic.Field(None, alias="_n_updates")
    episode_num: int | None = pydantic.Field(None, alias="_episode_num")
    n_calls: int | None = pydantic.Field(None, alias="_n_calls")
    current_progress_remaining: float | None = pydantic.Field(None, alias="_current_progress_remaining")
    exploration_rate: float | None = None


class Generators(pydantic.BaseModel, extra="forbid"):
    """States of the random generators: `random.getstate()` and `numpy.random.get_state()`."""

    python: tuple[int, list[int], float | None]
    numpy: tuple[str, list[int], int, int, float]


class RunState(pydantic.BaseModel, extra="forbid"):
    """`state.json`: counters, the [B] starts of episodes, generators, what else the run remembers, and whether there is
    a `manifest.json` beside it."""

    counters: Counters
    episode_starts: list[bool]
    rng: Generators
    progress: dict[str, Any]
    manifest: bool = False


def save_checkpoint(directory: Path, model: BaseAlgorithm, progress: dict[str, Any]) -> None:
    """Writes `directory/step-N/` atomically and deletes all but the last two checkpoints.

    Args:
        directory: the run's `checkpoints/`.
        model: between two iterations, its environment a `LeerooSB3VecEnv`.
        progress: what else the run has to remember, as JSON values.
    """
    with new_directory(directory / f"step-{model.num_timesteps:012d}") as checkpoint:
        write_tensors(checkpoint / "state.safetensors", _tensors(model))
        write_json(checkpoint / "state.json", _state(model, progress).model_dump(by_alias=True, exclude_unset=True))
    for old in [*sorted(directory.glob("step-*"))[:-KEEP], *directory.glob(".step-*.tmp")]:  # and what a kill left
        shutil.rmtree(old)


def network_tensors(model: BaseAlgorithm) -> dict[str, Tensor]:
    """Policy and optimiser, for `restore_networks`."""
    optimizer = model.policy.optimizer.state_dict()["state"]
    tensors = {f"policy.{name}": value for name, value in model.policy.state_dict().items()}
    return tensors | {
        f"optimizer.{i}.{k}": torch.as_tensor(v) for i, state in optimizer.items() for k, v in state.items()
    }


def _tensors(model: BaseAlgorithm) -> dict[str, Tensor]:
    """Policy, optimiser, environment and torch's random generators."""
    tensors = network_tensors(model)
    tensors |= {f"env.{name}": value for name, value in _environment(model).state_dict().items()}
    tensors |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors | {"rng.torch": torch.get_rng_state()}


def _state(model: BaseAlgorithm, progress: dict[str, Any]) -> RunState:
    """Counters and the other random generators."""
    counters = [field.alias or name for name, field in Counters.model_fields.items()]
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - SB3 shuffles with it
    return RunState(
        counters=Counters(**{name: getattr(model, name) for name in counters if hasattr(model, name)}),
        episode_starts=np.asarray(model._last_episode_starts).tolist(),
        rng=Generators(
            python=(version, list(internal), gauss),
            numpy=(str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)),
        ),
        progress=progress,
        manifest=True,
    )


def latest_checkpoint(directory: Path) -> Path | None:
    """The last checkpoint in a run's `checkpoints/`; None where there is none yet."""
    return max(directory.glob("step-*"), default=None)


def restore_checkpoint(path: Path, model: BaseAlgorithm, progress: Callable[..., P] = dict) -> P:  # type: ignore[assignment]
    """Restores the state of a new model and its environment; returns the `progress` that was saved with it.

    Args:
        path: the checkpoint.
        model: of the same kind and settings.
        progress: makes it from its values, as a dataclass does.

    Raises:
        InputError: the checkpoint is broken or belongs to another table, algorithm or network.
    """
    try:
        known = check_files(path)
        tensors, state = read_tensors(path / "state.safetensors"), read_model(path / "state.json", RunState)
        if state.manifest and not known:
            raise missing_manifest(path)
    except InputError as error:
        raise InputError(f"{error}; or delete this checkpoint: the run goes on from the one before") from None
    try:
        restore_networks(model, tensors)
        model._last_obs = _environment(model).load_state_dict(_part(tensors, "env."))
        _restore_state(model, state)
        torch.set_rng_state(tensors["rng.torch"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(list(_part(tensors, "rng.cuda.").values()))
        return progress(**state.progress)
    except UNFIT as error:
        raise InputError(f"{path}: does not fit this run: {first_line(error)}") from None


def restore_networks(model: BaseAlgorithm, tensors: dict[str, Tensor]) -> None:
    """Restores policy and optimiser."""
    model.policy.load_state_dict(with_current_names(_part(tensors, "policy.")))
    _restore_optimizer(model.policy.optimizer, _part(tensors, "optimizer."))


def _restore_state(model: BaseAlgorithm, state: RunState) -> None:
    if len(state.episode_starts) != model.n_envs:
        raise ValueError(f"{len(state.episode_starts)} episodes, not {model.n_envs}")
    model._last_episode_starts = np.array(state.episode_starts)
    for name, value in state.counters.model_dump(by_alias=True, exclude_unset=True).items():
        setattr(model, name, value)
    version, internal, gauss = state.rng.python
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state.rng.numpy
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002


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
