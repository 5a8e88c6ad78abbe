"""The environments in torch's other modes, and within Gymnasium's vector wrappers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import vector as wrappers

from leeroo_env import ExpertTable, InputError, LeerooEnv, LeerooVectorEnv, dynamics
from leeroo_env.sb3 import LeerooSB3VecEnv
from tests.leeroo_env.dynamics.test_voting import answers_table

Mode = Callable[[], AbstractContextManager[Any]]
CALLS = pytest.mark.parametrize("max_calls", [1, 3])
INSIDE_OUT = pytest.mark.parametrize(
    ("first", "then"),
    [(torch.inference_mode, nullcontext), (nullcontext, torch.inference_mode), (torch.inference_mode, torch.no_grad)],
    ids=["inside, then outside", "outside, then inside", "inside, then without gradients"],
)


@CALLS
@INSIDE_OUT
def test_episodes_begun_in_inference_mode_go_on_outside(first: Mode, then: Mode, max_calls: int):
    """They are the same episodes, and all that the environment offers can be used anywhere."""
    kwargs: dict[str, Any] = {"table": answers_table(), "horizon": 4, "max_calls": max_calls}
    plain = LeerooVectorEnv(3, **kwargs)
    with first():
        env, single = LeerooVectorEnv(3, **kwargs), LeerooEnv(**kwargs)
        observations, single_observation = env.reset(seed=0)[0], single.reset(seed=0)[0]
    np.testing.assert_array_equal(observations, plain.reset(seed=0)[0])
    np.testing.assert_array_equal(single_observation, observations[0])
    for t in range(12 * max_calls):
        actions = np.arange(3) + t % 2
        with (then, first)[t % 3 == 2]():
            observations, rewards, *_ = env.step(actions)
        expected = plain.step(actions)
        np.testing.assert_array_equal(observations, expected[0])
        np.testing.assert_array_equal(rewards, expected[1])
    with first():
        stored = env.state_dict()
    with then():
        env.load_state_dict(stored)
        env.reset(seed=3, options={"reset_mask": np.array([True, False, True])})
        env.step(np.zeros(3, int))


@CALLS
@INSIDE_OUT
def test_states_of_inference_mode_are_normal_tensors(first: Mode, then: Mode, max_calls: int):
    with first():
        table = answers_table()
        rules = dynamics.make_rules(table, "train", 4, max_calls=max_calls)
        keys = dynamics.episode_keys(torch.arange(3), torch.arange(3))
        state = dynamics.sample_episodes(rules, keys)
        given = dynamics.new_episodes(rules, state.rows, state.budget_usd.clone())
        state, outcome = dynamics.step(rules, state, torch.zeros(3, dtype=torch.int64))
        new = dynamics.select_episodes(given, torch.tensor([1]))
        states = [state, given, new, dynamics.replace_ended(given, outcome.terminated, state)]
        states.append(dynamics.replace_episodes(state, torch.tensor([2]), new))
        observations = dynamics.observe(rules, state)
    assert not any(value.is_inference() for one in states for value in vars(one).values())
    assert not any(value.is_inference() for value in (*vars(outcome).values(), table.scores, table.embeddings))
    with then():
        state.left_usd.mul_(0.5)
        dynamics.step(rules, state, torch.ones(3, dtype=torch.int64))
    torch.nn.Linear(observations.shape[1], 2)(observations).sum().backward()


@pytest.fixture
def doubles() -> Iterator[None]:
    """torch's default is float64 meanwhile."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@CALLS
def test_double_precision_by_default_changes_nothing(doubles: None, max_calls: int):
    kwargs: dict[str, Any] = {"table": answers_table(), "horizon": 4, "max_calls": max_calls}

    def played() -> list[Any]:
        env, single = LeerooVectorEnv(3, **kwargs), LeerooEnv(**kwargs)
        observed: list[Any] = [env.reset(seed=0)[0], single.reset(seed=0)[0]]
        for t in range(9):
            observed += [*env.step(np.arange(3))[:2], single.step(t % 2)[0]]
            assert env.observation_space.contains(observed[-3]) and single.observation_space.contains(observed[-1])
        return [*observed, env.state.score, env.state.call_features]

    in_doubles = played()
    torch.set_default_dtype(torch.float32)
    for one, other in zip(in_doubles, played(), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def wrapped(env: VectorEnv) -> dict[str, Callable[[], VectorEnv]]:
    low, high = env.single_observation_space.low, env.single_observation_space.high  # type: ignore[attr-defined]
    return {
        "RecordEpisodeStatistics": lambda: wrappers.RecordEpisodeStatistics(env, stats_key="whole"),
        "NormalizeObservation": lambda: wrappers.NormalizeObservation(env),
        "NormalizeReward": lambda: wrappers.NormalizeReward(env),
        "ClipReward": lambda: wrappers.ClipReward(env, -0.5, 0.5),
        "RescaleObservation": lambda: wrappers.RescaleObservation(env, np.zeros_like(low), np.ones_like(high)),
        "TransformObservation": lambda: wrappers.TransformObservation(env, lambda observations: observations * 2),
        "FlattenObservation": lambda: wrappers.FlattenObservation(env),
        "NumpyToTorch": lambda: wrappers.NumpyToTorch(env),
        "DictInfoToList": lambda: wrappers.DictInfoToList(env),
    }


@CALLS
@pytest.mark.parametrize(
    "name",
    [
        "RecordEpisodeStatistics",
        "NormalizeObservation",
        "NormalizeReward",
        "ClipReward",
        "RescaleObservation",
        "TransformObservation",
        "FlattenObservation",
        "NumpyToTorch",
        "DictInfoToList",
    ],
)
def test_gymnasiums_wrappers_play_with_next_step(name: str, max_calls: int):
    if name == "NumpyToTorch":
        pytest.importorskip("array_api_compat")
    env = gymnasium.make_vec(
        "Leeroo-v0",
        num_envs=3,
        table=answers_table(),
        horizon=4,
        max_calls=max_calls,
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )
    env = wrapped(env)[name]()
    env.reset(seed=0)
    ended = 0
    for t in range(15 * max_calls):
        actions = torch.arange(3) if name == "NumpyToTorch" else np.arange(3)
        observations, rewards, terminated, _, infos = env.step(actions)
        assert observations.shape == env.observation_space.shape and len(rewards) == 3
        ended += int(terminated.sum())
        if name == "RecordEpisodeStatistics" and terminated.any():
            assert infos["whole"]["l"][0] == infos["episode"]["l"][0] and t >= 3
    assert ended >= 6


def test_without_autoreset_the_caller_resets(table: ExpertTable):
    env = LeerooVectorEnv(2, table, horizon=2, autoreset_mode="Disabled", render_mode="ansi")
    env.reset(seed=0)
    env.step(np.zeros(2, int))
    *_, terminated, _, infos = env.step(np.zeros(2, int))
    assert terminated.all() and infos["episode"]["l"].tolist() == [2, 2] and "final_obs" not in infos
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"reset the environments \[0, 1\] first"):
        env.step(np.zeros(2, int))
    env.reset(options={"reset_mask": terminated})
    assert not env.step(np.zeros(2, int))[2].any()


def test_an_episode_that_begins_in_the_next_step_has_no_action_to_tell_of(table: ExpertTable):
    env = LeerooVectorEnv(1, table, horizon=1, autoreset_mode=AutoresetMode.NEXT_STEP, render_mode="ansi")
    env.reset(seed=0)
    env.step(np.array([1]))
    assert "expert-1" in (env.render() or ("",))[0]
    _, rewards, terminated, _, infos = env.step(np.array([1]))
    assert rewards[0] == 0 and not terminated[0] and infos["cost_usd"][0] == 0 and not infos["_score"][0]
    assert (env.render() or ("",))[0].startswith("query 0/1") and "expert-1" not in (env.render() or ("",))[0]


def test_other_modes_are_refused(table: ExpertTable):
    with pytest.raises(InputError, match="autoreset_mode 'never': must be one of"):
        LeerooVectorEnv(2, table, horizon=2, autoreset_mode="never")
    with pytest.raises(InputError, match=r"stable-baselines3 needs AutoresetMode\.SAME_STEP"):
        LeerooSB3VecEnv(LeerooVectorEnv(2, table, horizon=2, autoreset_mode=AutoresetMode.NEXT_STEP))
