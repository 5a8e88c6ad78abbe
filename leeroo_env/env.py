"""Plays one episode at a time: the Gymnasium environment."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from leeroo_env import dynamics
from leeroo_env.builtin import DEFAULT, resolve
from leeroo_env.dynamics import COST_WEIGHT, HORIZON, Outcome, Rules, State
from leeroo_env.table import ExpertTable


class LeerooEnv(gymnasium.Env[np.ndarray, np.int64]):
    """
    ## Description

    A stream of queries has to be answered within a budget in dollars. Each query is answered by one of K expert
    language models, which differ in price and in knowledge. Their answers, scores and costs have been collected
    before and are read from a table, so a step takes microseconds and costs nothing.

    With `max_calls` M > 1, up to M experts can be called for a query, one per step, before an answer is delivered: the
    one with the most votes. The weight of an expert's vote depends on its `reliability`.

    ## Action Space

    `Discrete(K)`: the expert that answers the query. A call that costs more than what is left of the budget is cut off
    where the money ends: it scores 0 and costs what was left.

    M > 1: `Discrete(K + 1)`: the expert to call for the current query, or K, the stop action, which delivers. The Mth
    call delivers within the same step. Every call is charged. One that is cut off brings no answer and counts as one
    of the M; so does calling an expert again, which costs nothing. Where no call was answered, the delivery scores 0.

    ## Observation Space

    `Box` of shape `(D + 2,)`, float32, finite:

    | Num    | Observation                                                           | Min           | Max          |
    |--------|-----------------------------------------------------------------------|---------------|--------------|
    | 0..D-1 | embedding of the query, or its `features`                             | their minimum | and maximum  |
    | D      | dollars per remaining query, log scale: 0 lowest, 1 highest mean cost | -1            | 2            |
    | D+1    | log2(queries left) / 10                                               | 0             | 2            |

    M > 1: shape `(D + 4K + 5,)`; between the embedding and the two numbers of the budget, which remain the last, are
    the features of the calls for the current query:

    | Num         | Observation                                                             | Min | Max |
    |-------------|-------------------------------------------------------------------------|-----|-----|
    | D..D+K-1    | whether the expert was called                                           | 0   | 1   |
    | D+K..D+2K-1 | whether it gave the leading answer                                      | 0   | 1   |
    | D+2K..D+3K-1| first call that gave its answer, from 1, / M; no answer: -1 / M; else 0 | -1  | 1   |
    | D+3K..D+4K-1| what the call told of its answer, in log-odds of being right; else 0    | -6  | 6   |
    | D+4K        | the leading answer's share of the votes                                 | 0   | 1   |
    | D+4K+1      | number of different answers / M                                         | 0   | 1   |
    | D+4K+2      | calls made / M                                                          | 0   | 1   |

    ## Rewards

    `score - cost_weight * cost_usd / (mean cost of the most expensive expert)`, the score being in [0, 1]. M > 1: the
    score is 0 in steps that deliver nothing.

    ## Starting State

    `horizon` queries drawn without replacement from the split, and a budget of `horizon * b` dollars, b log-uniform in
    the range of budgets. Both depend only on the seed and the number of the episode.

    ## Episode End

    Terminated after `horizon` queries; never truncated. M > 1: a query takes up to M steps.

    ## Information

    `action_mask` [K] (the experts whose mean cost is at most what is left), `score`, `cost_usd`, `cut_off`,
    `delivered`, `left_usd`, and at the end `episode`: `r` return, `l` steps, `t` seconds, `score` and `cost_usd` per
    query, `budget_usd`, `left_usd`, `cut_off` calls, `calls` [K] of each expert. (So `RecordEpisodeStatistics` needs
    another `stats_key`.) M > 1: `action_mask` [K + 1] excludes experts called before, and stopping before the first
    call.

    ## Arguments

    `table` is a table directory, the name of a built-in table or an `ExpertTable`; `max_calls` above 1 needs one with
    answers. `reliability` is [N, K] or [1, K]; None: each expert's mean score. `features` [N, F] are observed in
    place of the embeddings, `evidence` [N, K] after calls. `reset` takes the option `budget_usd_per_query`, a number
    that fixes the episode's budget.

    >>> import gymnasium, leeroo_env
    >>> env = gymnasium.make("Leeroo-v0", table="tiny", horizon=32)
    >>> observation, info = env.reset(seed=0)
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(
        self,
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
    ):
        """Args: see `leeroo_env.dynamics.make_rules`; `budget` is in dollars a query. Raises `InputError`."""
        self.rules = dynamics.make_rules(
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
        self.observation_space, self.action_space = spaces(self.rules)
        self.render_mode = render_mode
        self._stream: int | None = None
        self._episode = 0
        self._state: State | None = None
        self._outcome: Outcome | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if seed is not None or self._stream is None:
            self._stream, self._episode = random_stream(self.np_random), 0
        device = self.rules.table.device
        key = dynamics.episode_keys(
            torch.tensor([self._stream], device=device), torch.tensor([self._episode], device=device)
        )
        self._episode += 1
        budget = (options or {}).get("budget_usd_per_query")
        fixed = None if budget is None else torch.tensor([check_budget(budget)], dtype=torch.float64, device=device)
        self._state, self._outcome = dynamics.sample_episodes(self.rules, key, fixed), None
        self._return, self._started_at = 0.0, time.perf_counter()
        return self._observation(), self._info(self._state)

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict]:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not an action of {self.action_space}")
        actions = torch.tensor([int(action)], device=self.rules.table.device)
        self._action = int(action)
        self._state, self._outcome = dynamics.step(self.rules, self._playing(), actions)
        reward, terminated = float(self._outcome.reward), bool(self._outcome.terminated)
        self._return += reward
        info = self._info(self._state) | {
            "score": float(self._outcome.score),
            "cost_usd": float(self._outcome.cost_usd),
            "cut_off": bool(self._outcome.cut_off),
            "delivered": bool(self._outcome.delivered),
        }
        if terminated:
            seconds = time.perf_counter() - self._started_at
            statistics = episode_statistics(self.rules, self._state, np.array([self._return]), np.array([seconds]))
            info["episode"] = {name: value[0] for name, value in statistics.items()}
        return self._observation(), reward, terminated, False, info

    def action_masks(self) -> np.ndarray:
        """The mask of actions, [K] bool, with M > 1 [K + 1], by the name that sb3-contrib expects."""
        return self._info(self._playing())["action_mask"]

    def render(self) -> str | None:
        if self.render_mode != "ansi" or self._state is None:
            return None
        return describe(self.rules, self._state, self._outcome, 0, None if self._outcome is None else self._action)

    def _playing(self) -> State:
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset first")
        return self._state

    def _observation(self) -> np.ndarray:
        return dynamics.observe(self.rules, self._playing())[0].cpu().numpy()

    def _info(self, state: State) -> dict[str, Any]:
        mask = dynamics.state_mask(self.rules, state)
        return {"action_mask": mask[0].cpu().numpy(), "left_usd": float(state.left_usd)}


def spaces(rules: Rules) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Discrete]:
    """Observation and action space of one episode."""
    features = rules.features.cpu().numpy()
    called_experts = len(rules.table.experts) if rules.max_calls > 1 else 0
    low, high = float(features.min()), float(features.max())
    observations = observation_space(features.shape[1], low, high, called_experts)
    return observations, gymnasium.spaces.Discrete(rules.n_actions)


def observation_space(feature_dim: int, low: float, high: float, called_experts: int = 0) -> gymnasium.spaces.Box:
    """The Box of query features, call features and budget features: [F + 2] or, with several calls, [F + 4K + 5].

    Args:
        feature_dim: F.
        low: the lowest query feature.
        high: the highest.
        called_experts: K with several calls per query; 0 with one.
    """
    of_expert = [(0, 1), (0, 1), (-1, 1), (-dynamics.MAX_EVIDENCE, dynamics.MAX_EVIDENCE)]
    calls = [bounds for bounds in of_expert for _ in range(called_experts)] + [(0, 1)] * 3 * (called_experts > 0)
    bounds = np.array([(low, high)] * feature_dim + calls + [(-1, 2), (0, 2)], dtype=np.float32)
    return gymnasium.spaces.Box(bounds[:, 0], bounds[:, 1])


def check_budget(usd_per_query: Any) -> Any:
    """The budget given to `reset`, a number or an array. Raises ValueError where it is not finite and above 0."""
    if not (np.isfinite(usd_per_query).all() and (np.asarray(usd_per_query) > 0).all()):
        raise ValueError(f"budget_usd_per_query must be finite and above 0, got {usd_per_query!r}")
    return usd_per_query


def random_stream(np_random: np.random.Generator) -> int:
    """The number of an environment's random stream, which determines all of its episodes."""
    return int(np_random.integers(2**63 - 1))


def episode_statistics(rules: Rules, state: State, returns: np.ndarray, seconds: np.ndarray) -> dict[str, np.ndarray]:
    """The statistics of B episodes that have just ended, as in `LeerooEnv`; each [B], `calls` [B, K].

    Args:
        rules: of the episodes.
        state: at their ends.
        returns: [B], sums of rewards.
        seconds: [B], durations.
    """
    names = ("steps", "score", "budget_usd", "left_usd", "cut_off")
    host = {name: getattr(state, name).cpu().numpy() for name in names}
    return {
        "r": returns,
        "l": host["steps"],
        "t": seconds,
        "score": host["score"] / rules.horizon,
        "cost_usd": (host["budget_usd"] - host["left_usd"]) / rules.horizon,
        "budget_usd": host["budget_usd"],
        "left_usd": host["left_usd"],
        "cut_off": host["cut_off"],
        "calls": state.calls.cpu().numpy().astype(np.int64),
    }


def describe(rules: Rules, state: State, outcome: Outcome | None, i: int, action: int | None) -> str:
    """Episode i of the batch and its last `action` in one line."""
    money = f"${float(state.left_usd[i]):.6f} left of ${float(state.budget_usd[i]):.6f}"
    line = f"query {int(state.t[i])}/{rules.horizon}, {money}"
    if outcome is None or action is None:
        return line
    cost = f"${float(outcome.cost_usd[i]):.6f}{', cut off' * bool(outcome.cut_off[i])}"
    score = f"score {float(outcome.score[i]):.2f}"
    if rules.max_calls == 1:
        return f"{line}: {rules.table.experts[action]}: {score}, {cost}"
    parts = [f"{rules.table.experts[action]}: {cost}"] if action < len(rules.table.experts) else []
    return f"{line}: {'; '.join([*parts, f'delivered, {score}'] if outcome.delivered[i] else parts)}"
