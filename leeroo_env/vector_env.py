"""Plays many episodes in lockstep: the Gymnasium vector environment."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from leeroo_env import dynamics
from leeroo_env.builtin import DEFAULT, resolve
from leeroo_env.dynamics import COST_WEIGHT, HORIZON, Outcome, Rules, State
from leeroo_env.env import check_budget, describe, episode_statistics, random_stream, spaces
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable

RENAMED_FIELDS = {"polled": "call_features"}  # of `State`, old to current: checkpoints with the old name still load


class LeerooVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """B episodes of `LeerooEnv` in one batch, with the same arguments, spaces and rules.

    Environment i, seeded with `seed + i`, plays exactly the episodes of a `LeerooEnv` seeded with that number, whatever
    the number of environments. An episode that ends is followed by the next one within the same step
    (`AutoresetMode.SAME_STEP`): the observation is the first of the new episode, `infos["final_obs"]` holds the last of
    the old one and `infos["final_info"]` its information, `infos["episode"]` its statistics (masked by `_episode`).

    With `AutoresetMode.NEXT_STEP`, which some of Gymnasium's wrappers need, the step that ends an episode returns its
    last observation; the next step ignores the action and returns the first one of the new episode, with reward 0.
    With `AutoresetMode.DISABLED` episodes that have ended have to be reset, by `reset_mask`, before the next step.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4, "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        table: str | os.PathLike | ExpertTable = DEFAULT,
        split: str = "train",
        horizon: int = HORIZON,
        budget: float | Sequence[float] | None = None,
        cost_weight: float = COST_WEIGHT,
        experts: str | Sequence[str] | None = None,
        device: torch.device | str | None = None,
        render_mode: str | None = None,
        max_calls: int = 1,
        reliability: Tensor | None = None,
        features: Tensor | None = None,
        evidence: Tensor | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        rules: Rules | None = None,
    ):
        """Args: `num_envs` B; `autoreset_mode` as above; `rules` that have been made, in place of all that they are
        made of; the rest as in `LeerooEnv`. Raises `InputError`."""
        self.rules = rules or dynamics.make_rules(
            resolve(table, experts, device),
            split,
            horizon,
            budget,
            cost_weight,
            max_calls,
            reliability,
            features,
            evidence,
        )
        if num_envs < 1:
            raise InputError(f"num_envs {num_envs}: must be 1 or more")
        if autoreset_mode not in [*AutoresetMode, *(mode.value for mode in AutoresetMode)]:
            raise InputError(f"autoreset_mode {autoreset_mode!r}: must be one of {', '.join(map(str, AutoresetMode))}")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space, self.single_action_space = spaces(self.rules)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._streams, self._episodes = torch.zeros(2, 0, dtype=torch.int64)
        self._state: State | None = None
        self._outcome: Outcome | None = None
        self._next_state: State | None = None
        self._sampled = np.zeros(num_envs, dtype=bool)
        self._all = np.ones(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts new episodes in all environments, or in those of `options["reset_mask"]` [B].

        Args:
            seed: a number for environment 0, counted up for the others, or one for each; None continues the streams.
            options: `reset_mask` [B] bool; `budget_usd_per_query`, a number or [B].
        """
        options = options or {}
        mask = options.get("reset_mask", self._all)
        where = torch.from_numpy(np.flatnonzero(mask)).to(self.rules.table.device)
        if len(where) == 0 or len(mask) != self.num_envs:
            raise ValueError(f"reset_mask must be [{self.num_envs}] with at least one True, got {mask!r}")
        self._seed(seed, mask)
        if self._state is None and len(where) < self.num_envs:
            raise ValueError("the first reset must reset every environment")
        self._start(where, options.get("budget_usd_per_query"))
        self._outcome = None
        return self._observations(), self._infos()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if np.asarray(actions).dtype.kind not in "iu":
            raise ValueError(f"actions must be whole numbers, got {actions!r}")
        chosen = torch.as_tensor(actions, dtype=torch.int64, device=self.rules.table.device)
        if chosen.shape != (self.num_envs,) or chosen.min() < 0 or chosen.max() >= self.rules.n_actions:
            raise ValueError(f"actions must be [{self.num_envs}] of {self.single_action_space}, got {actions!r}")
        self._actions = chosen
        played = self._all if self.autoreset_mode == AutoresetMode.SAME_STEP else self._not_ended()
        self._state, self._outcome = dynamics.step(self.rules, self._playing(), chosen)
        host = {name: value.cpu().numpy() for name, value in vars(self._outcome).items()}
        if not played.all():
            where = torch.from_numpy(np.flatnonzero(~played)).to(chosen.device)
            self._start(where)
            self._actions = chosen.index_fill(0, where, -1)  # nothing to tell of
            host = {name: np.where(played, value, np.zeros_like(value)) for name, value in host.items()}
        rewards, terminated = host.pop("reward"), host.pop("terminated")
        self._returns += rewards
        infos = self._infos() | host | {f"_{name}": played for name in host}
        if terminated.any():
            infos = self._finish(terminated, infos)
        return self._observations(), rewards, terminated, np.zeros_like(terminated), infos

    def action_masks(self) -> np.ndarray:
        """The mask of actions, [B, K] bool, with M > 1 [B, K + 1]; see `LeerooEnv`."""
        return dynamics.state_mask(self.rules, self._playing()).cpu().numpy()

    def render(self) -> tuple[str, ...] | None:
        if self.render_mode != "ansi" or self._state is None:
            return None
        shown = [-1] * self.num_envs if self._outcome is None else self._actions.tolist()
        actions = [None if action < 0 else action for action in shown]
        return tuple(describe(self.rules, self._state, self._outcome, i, a) for i, a in enumerate(actions))

    @property
    def state(self) -> State:
        """The state of the episodes, for loops that call `leeroo_env.dynamics` themselves and then `continue_from`."""
        return self._playing()

    @property
    def returns(self) -> Tensor:
        """[B] float64, sums of the rewards of the current episodes so far."""
        return torch.from_numpy(self._returns.copy())

    def upcoming(self, n: int) -> tuple[Tensor, Tensor]:
        """Rows [n, B, H] and budgets in dollars [n, B] of the next n episodes of each environment."""
        ahead = torch.arange(n, device=self._episodes.device)[:, None]
        keys = dynamics.episode_keys(self._streams, self._episodes + ahead)
        sampled = dynamics.sample_episodes(self.rules, keys.view(-1))
        return sampled.rows.view(n, self.num_envs, -1), sampled.budget_usd.view(n, -1)

    def continue_from(self, state: State, started: Tensor, returns: Tensor) -> None:
        """Takes over from a loop that has called `leeroo_env.dynamics` itself.

        Args:
            state: of the episodes now.
            started: [B] int64, the number of `upcoming` episodes that each environment has started.
            returns: [B] float64, as `returns`.
        """
        self._state, self._outcome = state, None
        self._episodes = self._episodes + started
        self._returns[:] = returns.cpu().numpy()
        self._sampled[:] = False

    def state_dict(self) -> dict[str, Tensor]:
        """All that determines the rest of the episodes, for a checkpoint."""
        state = {f"state.{name}": value for name, value in vars(self._playing()).items()}
        return state | {
            "streams": self._streams,
            "episodes": self._episodes,
            "returns": self.returns,
        }

    def load_state_dict(self, stored: dict[str, Tensor]) -> np.ndarray:
        """Restores the state that `state_dict` returned; returns its observations."""
        stored = {name: value.to(self.rules.table.device) for name, value in stored.items()}
        self._streams, self._episodes = stored["streams"], stored["episodes"]
        self._sampled[:] = False
        self._returns = stored["returns"].cpu().numpy().copy()
        self._started_at = np.full(self.num_envs, time.perf_counter())
        fields = {n.removeprefix("state."): v for n, v in stored.items() if n.startswith("state.")}
        self._state = State(**{RENAMED_FIELDS.get(name, name): value for name, value in fields.items()})
        return self._observations()

    def _seed(self, seed: int | Sequence[int | None] | None, mask: np.ndarray) -> None:
        """Gives the masked environments the random streams of their seeds."""
        device = self.rules.table.device
        if len(self._streams) == 0:
            drawn = self.np_random.integers(2**63 - 1, size=self.num_envs)
            self._streams = torch.from_numpy(drawn).to(device)
            self._episodes = torch.zeros(self.num_envs, dtype=torch.int64, device=device)
        if seed is None:
            return
        seeds = range(seed, seed + self.num_envs) if isinstance(seed, int | np.integer) else seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        streams = self._streams.tolist()
        episodes = self._episodes.tolist()
        for i in np.flatnonzero(mask).tolist():  # only with an explicit seed: numpy has no batched seeding
            own = seeds[i]
            if own is not None:
                streams[i], episodes[i] = random_stream(gymnasium.utils.seeding.np_random(int(own))[0]), 0
        self._np_random, self._np_random_seed = gymnasium.utils.seeding.np_random(
            None if seeds[0] is None else int(seeds[0])
        )
        self._streams, self._episodes = torch.tensor(streams, device=device), torch.tensor(episodes, device=device)
        self._sampled[:] = False

    def _start(self, where: Tensor, budget: float | np.ndarray | None = None) -> State:
        """Starts the next episodes of the environments with the indices `where` [b]; returns their initial state."""
        ended = where.cpu().numpy()
        if budget is None:
            new = self._next(where, ended)
        else:
            usd = torch.as_tensor(check_budget(budget), dtype=torch.float64, device=where.device)
            new = dynamics.sample_episodes(self.rules, self._keys(where), usd.expand(self.num_envs)[where])
        self._episodes = self._episodes.index_add(0, where, torch.ones_like(where))
        self._sampled[ended] = False
        self._state = new if self._state is None else dynamics.replace_episodes(self._state, where, new)
        if len(ended) == self.num_envs:
            self._returns, self._started_at = np.zeros(self.num_envs), np.zeros(self.num_envs)
        self._returns[ended], self._started_at[ended] = 0.0, time.perf_counter()
        return new

    def _keys(self, where: Tensor) -> Tensor:
        return dynamics.episode_keys(self._streams[where], self._episodes[where])

    def _next(self, where: Tensor, ended: np.ndarray) -> State:
        """The initial state of the next episodes of the environments `where` [b], which are `ended` on the host, too.

        Sampled for all environments at once: where episodes end at different times, sampling for few takes as long.
        """
        if not self._sampled[ended].all():
            lacking = torch.from_numpy(np.flatnonzero(~self._sampled)).to(where.device)
            sampled = dynamics.sample_episodes(self.rules, self._keys(lacking))
            before = self._next_state
            self._next_state = sampled if before is None else dynamics.replace_episodes(before, lacking, sampled)
            self._sampled[:] = True
        assert self._next_state is not None
        return dynamics.select_episodes(self._next_state, where)

    def _not_ended(self) -> np.ndarray:
        """Which episodes have not ended, [B] bool. Raises ResetNeeded where one has and the caller has to reset it."""
        playing = (self._playing().t < self.rules.horizon).cpu().numpy()
        if self.autoreset_mode == AutoresetMode.DISABLED and not playing.all():
            raise gymnasium.error.ResetNeeded(f"reset the environments {np.flatnonzero(~playing).tolist()} first")
        return playing

    def _finish(self, ended: np.ndarray, infos: dict[str, Any]) -> dict[str, Any]:
        """The `infos` of a step in which episodes have `ended` [B] bool, with the statistics of these. With SAME_STEP
        it starts new ones, and mask and budget are theirs."""
        seconds = time.perf_counter() - self._started_at
        statistics = episode_statistics(self.rules, self._playing(), self._returns.copy(), seconds)
        episode = {"episode": statistics, "_episode": ended}
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            return infos | episode
        where = torch.from_numpy(np.flatnonzero(ended)).to(self.rules.table.device)
        last = dynamics.observe(self.rules, dynamics.select_episodes(self._playing(), where)).cpu().numpy()
        final_obs = np.zeros((self.num_envs, last.shape[1]), last.dtype)
        final_obs[ended] = last
        new = self._start(where)
        started = {name: infos[name].copy() for name in ("action_mask", "left_usd")}
        started["action_mask"][ended] = dynamics.state_mask(self.rules, new).cpu().numpy()
        started["left_usd"][ended] = new.left_usd.cpu().numpy()
        return {
            **infos,
            **started,
            "final_obs": final_obs,
            "_final_obs": ended,
            "final_info": infos | episode,
            "_final_info": ended,
            **episode,
        }

    def _playing(self) -> State:
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset first")
        return self._state

    def _observations(self) -> np.ndarray:
        return dynamics.observe(self.rules, self._playing()).cpu().numpy()

    def _infos(self) -> dict[str, Any]:
        infos = {"action_mask": self.action_masks(), "left_usd": self._playing().left_usd.cpu().numpy()}
        return infos | {f"_{name}": self._all for name in list(infos)}
