"""Adapts `LeerooVectorEnv` to the `VecEnv` interface of stable-baselines3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from leeroo_env.errors import InputError
from leeroo_env.vector_env import LeerooVectorEnv


class LeerooSB3VecEnv(VecEnv):
    """Passes batches through as they are: only where an episode ended, something is done per environment.

    `infos` is a list of dictionaries, as SB3 requires, empty except for the environments whose episode ended; theirs
    have `episode` (see `LeerooEnv`), `terminal_observation` and `TimeLimit.truncated` (False).
    """

    def __init__(self, env: LeerooVectorEnv):
        """Raises InputError for an `env` that does not start new episodes within the step that ends the old ones."""
        if env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise InputError(f"autoreset_mode {env.autoreset_mode}: stable-baselines3 needs {AutoresetMode.SAME_STEP}")
        self.env = env
        self._infos: list[dict[str, Any]] = [{} for _ in range(env.num_envs)]
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> np.ndarray:
        options = self._options[0] or None
        observations, _ = self.env.reset(
            seed=self._seeds if any(s is not None for s in self._seeds) else None, options=options
        )
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, terminated, _, infos = self.env.step(self._actions)
        listed = self._final_infos(infos) if "final_obs" in infos else self._infos
        return observations, rewards, terminated, listed

    def action_masks(self) -> np.ndarray:
        """The mask of actions, [B, K] bool, with M > 1 [B, K + 1], for sb3-contrib's MaskablePPO."""
        return self.env.action_masks()

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ValueError(f"{attr_name} belongs to the whole batch and cannot be set for some environments only")
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *method_args, indices: VecEnvIndices = None, **method_kwargs) -> Any:
        """Calls the method once for the batch; a result whose first dimension is B counts as a list of B results."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        batched = isinstance(result, np.ndarray | tuple) and len(result) == self.num_envs
        chosen = list(self._get_indices(indices))
        if not batched:
            return [result] * len(chosen)
        return result if indices is None else [result[i] for i in chosen]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))

    def render(self, mode: str | None = None) -> Sequence[str] | None:  # type: ignore[override]
        return self.env.render()

    def _final_infos(self, infos: dict[str, Any]) -> list[dict[str, Any]]:
        listed = list(self._infos)
        episode = infos["episode"]
        for i in np.flatnonzero(infos["_episode"]).tolist():
            listed[i] = {
                "episode": {name: values[i] for name, values in episode.items()},
                "terminal_observation": infos["final_obs"][i],
                "TimeLimit.truncated": False,
            }
        return listed
