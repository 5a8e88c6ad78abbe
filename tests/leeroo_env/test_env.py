"""The environments are what Gymnasium and SB3 expect, and all play the same episodes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import VecMonitor

from leeroo_env import ExpertTable, LeerooEnv, LeerooVectorEnv, dynamics
from leeroo_env.builtin import resolve
from leeroo_env.sb3 import LeerooSB3VecEnv
from tests.leeroo_env.dynamics.test_voting import answers_table

CALLS = pytest.mark.parametrize("max_calls", [1, 3])


def make(table: ExpertTable, **kwargs: Any) -> gymnasium.Env:
    return gymnasium.make("Leeroo-v0", table=table, horizon=6, **kwargs)


def unwrapped(env: gymnasium.Env) -> LeerooEnv:
    assert isinstance(env.unwrapped, LeerooEnv)
    return env.unwrapped


def make_vec(table: ExpertTable, n: int, **kwargs: Any) -> LeerooVectorEnv:
    env = gymnasium.make_vec("Leeroo-v0", num_envs=n, table=table, horizon=6, **kwargs)
    assert isinstance(env, LeerooVectorEnv)
    return env


def state_of(env: LeerooEnv | LeerooVectorEnv) -> dynamics.State:
    """Of episodes that have begun."""
    assert env._state is not None
    return env._state


def n_actions(env: LeerooVectorEnv) -> int:
    assert isinstance(env.single_action_space, gymnasium.spaces.Discrete)
    return int(env.single_action_space.n)


@CALLS
@pytest.mark.parametrize("check", [check_env, sb3_check_env])
def test_checkers_pass_without_a_warning(check, max_calls: int):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(make(answers_table(), render_mode="ansi", max_calls=max_calls).unwrapped)


def test_one_call_a_query_is_what_it_always_was(table: ExpertTable):
    """Everything that is observed, against what was recorded before there was more than one call; logarithms apart."""
    env = LeerooVectorEnv(7, table, horizon=6, budget=0.0006)
    observations, infos = env.reset(seed=3)
    rng, digest = np.random.default_rng(0), hashlib.sha256()
    for _ in range(20):
        observed = [observations[:, :-2], infos["action_mask"], infos["left_usd"]]
        observations, rewards, terminated, _, infos = env.step(rng.integers(0, 4, size=7))
        observed += [rewards, terminated, infos["score"], infos["cost_usd"], infos["cut_off"]]
        if terminated.any():
            observed += [
                infos["final_obs"][:, :-2],
                *(infos["episode"][n] for n in ("r", "l", "score", "cut_off", "calls")),
            ]
        for value in observed:
            digest.update(np.ascontiguousarray(value).data)
    assert digest.hexdigest() == "b36e353987f99707828bbac79bff4ef94e306183c99846304f689c0609e94cb6"
    assert env.single_observation_space.shape == (7,) and env.single_action_space == gymnasium.spaces.Discrete(4)
    env = LeerooVectorEnv(3, table, horizon=6)
    env.reset(seed=3)
    np.testing.assert_allclose(
        state_of(env).left_usd, [0.0036027624795833667, 0.0022520784707468497, 0.014959023017793288], rtol=1e-12
    )


def test_a_table_is_shared_not_copied(table: ExpertTable):
    for rules in (unwrapped(make(table)).rules, make_vec(table, 3).rules):
        assert rules.table.embeddings.data_ptr() == table.embeddings.data_ptr()
        assert rules.table.scores.data_ptr() == table.scores.data_ptr()


@CALLS
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_vector_env_plays_what_single_envs_play(max_calls: int, mode: AutoresetMode):
    """Step by step over several episodes, against Gymnasium's own SyncVectorEnv: all that it returns."""
    kwargs: dict[str, Any] = {"table": answers_table(), "max_calls": max_calls, "reliability": torch.rand(60, 4)}
    vector = make_vec(n=5, autoreset_mode=mode, **kwargs)
    sync = SyncVectorEnv([lambda: make(**kwargs)] * 5, autoreset_mode=mode)
    assert vector.metadata["autoreset_mode"] == mode
    assert vector.observation_space == sync.observation_space and vector.action_space == sync.action_space
    rng = np.random.default_rng(0)
    seeds: tuple[Any, ...] = (3, None, [9, 8, 7, 6, 5])
    for seed in seeds:
        ours, info = vector.reset(seed=seed)
        theirs, their_info = sync.reset(seed=seed)
        assert_same(ours, theirs)
        assert_same(info, their_info)
        for _ in range(15 * max_calls):
            actions = rng.integers(0, n_actions(vector), size=5)
            for one, other in zip(vector.step(actions), sync.step(actions), strict=True):
                assert_same(one, other)


def assert_same(ours, theirs) -> None:
    """Equal to float tolerance; of dictionaries, all that Gymnasium tells, but for clock time."""
    if isinstance(theirs, dict):
        for key, value in theirs.items():
            if isinstance(value, dict):
                assert_same(ours[key], value)
            elif key != "t" and not key.startswith("_"):
                where = theirs.get(f"_{key}", slice(None))
                assert_same(ours[key][where], value[where])
        assert ("final_obs" in ours) == ("final_obs" in theirs)
        for key in theirs.keys() & {"_episode", "_final_obs", "_final_info"}:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, np.ndarray) and theirs.dtype == object:
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            if other is not None:
                assert_same(one, other)
    else:
        np.testing.assert_allclose(np.asarray(ours, np.float64), np.asarray(theirs, np.float64), rtol=1e-6, atol=1e-9)


def test_vector_env_plays_what_the_rules_say(table: ExpertTable):
    """The environment against the rules called by hand on the device."""
    vector = make_vec(table, 4)
    observation, _ = vector.reset(seed=11)
    state = dynamics.sample_episodes(
        vector.rules, dynamics.episode_keys(vector._streams, torch.zeros(4, dtype=torch.int64))
    )
    np.testing.assert_array_equal(observation, dynamics.observe(vector.rules, state).numpy())
    for t in range(5):
        actions = np.arange(4)
        state, outcome = dynamics.step(vector.rules, state, torch.from_numpy((actions + t) % 4))
        observation, reward, terminated, truncated, infos = vector.step((actions + t) % 4)
        np.testing.assert_array_equal(observation, dynamics.observe(vector.rules, state).numpy())
        np.testing.assert_array_equal(reward, outcome.reward.numpy())
        assert not terminated.any() and not truncated.any() and "final_obs" not in infos


def test_same_seed_same_episodes_and_other_seeds_others(table: ExpertTable):
    def episode(seed: int) -> np.ndarray:
        env = make(table)
        return np.array([env.reset(seed=seed)[0], *(env.step(0)[0] for _ in range(6)), env.reset()[0]])

    np.testing.assert_array_equal(episode(1), episode(1))
    assert not np.array_equal(episode(1)[0], episode(2)[0])
    assert not np.array_equal(episode(1)[0], episode(1)[-1]), "the next episode is another one"


@CALLS
def test_environment_i_does_not_depend_on_how_many_there_are(max_calls: int):
    few, many = (make_vec(answers_table(), n, max_calls=max_calls) for n in (2, 7))
    few.reset(seed=5), many.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(14 * max_calls):
        actions = rng.integers(0, n_actions(many), size=7)
        one, other = few.step(actions[:2]), many.step(actions)
        np.testing.assert_array_equal(one[0], other[0][:2])
        np.testing.assert_array_equal(one[1], other[1][:2])


def test_the_end_of_an_episode(table: ExpertTable):
    env = make_vec(table, 3, cost_weight=0.5)
    env.reset(seed=0)
    rewards = np.zeros(3)
    for _ in range(6):
        _, reward, terminated, _, infos = env.step(np.array([0, 1, 2]))
        rewards += reward
    assert terminated.all() and infos["_episode"].all() and infos["_final_obs"].all()
    episode = infos["episode"]
    np.testing.assert_allclose(episode["r"], rewards)
    assert episode["l"].tolist() == [6, 6, 6] and episode["calls"].tolist() == [
        [6, 0, 0, 0],
        [0, 6, 0, 0],
        [0, 0, 6, 0],
    ]
    highest_usd = float(env.rules.cost_scale.mean_usd.max())
    np.testing.assert_allclose(rewards, 6 * (episode["score"] - 0.5 * episode["cost_usd"] / highest_usd), rtol=1e-5)
    np.testing.assert_allclose(
        episode["left_usd"], episode["budget_usd"] - 6 * episode["cost_usd"], rtol=1e-5, atol=1e-9
    )
    assert (infos["final_obs"][:, -1] == 0).all() and (env.step(np.zeros(3, int))[0][:, -1] > 0).all()


def test_the_end_of_an_episode_with_several_calls():
    """Environment 0 asks one expert and delivers, 1 asks two, 2 asks until it delivers by itself."""
    env = make_vec(answers_table(), 3, max_calls=3, cost_weight=0.5)
    env.reset(seed=0, options={"budget_usd_per_query": 1.0})
    plans, rewards, ended = [[0, 4], [0, 1, 4], [2, 1, 0]], np.zeros(3), {}
    for t in range(18):
        _, reward, terminated, _, infos = env.step(np.array([plan[t % len(plan)] for plan in plans]))
        rewards += reward
        assert infos["delivered"].tolist() == [t % len(plan) == len(plan) - 1 for plan in plans]
        for i in np.flatnonzero(terminated):
            ended.setdefault(i, {name: value[i] for name, value in infos["episode"].items()} | {"rewards": rewards[i]})
    assert [ended[i]["l"] for i in range(3)] == [12, 18, 18]
    assert [ended[i]["calls"].tolist() for i in range(3)] == [[6, 0, 0, 0], [6, 6, 0, 0], [6, 6, 6, 0]]
    highest_usd = float(env.rules.cost_scale.mean_usd.max())
    for episode in ended.values():
        assert episode["r"] == pytest.approx(episode["rewards"])
        assert episode["r"] == pytest.approx(6 * (episode["score"] - 0.5 * episode["cost_usd"] / highest_usd), rel=1e-5)
        assert episode["left_usd"] == pytest.approx(6 - 6 * episode["cost_usd"])


def test_masks_are_enough_to_never_be_refused_twice():
    """Random play within the masks: every query is delivered within M steps, by experts that differ."""
    env, rng, since = make_vec(answers_table(), 50, max_calls=3, budget=0.0002), np.random.default_rng(0), np.zeros(50)
    _, infos = env.reset(seed=0)
    for _ in range(60):
        mask = infos["action_mask"]
        actions = (rng.random(mask.shape) * mask).argmax(axis=1)
        assert mask[np.arange(50), actions].all() and mask.shape == (50, 5)
        before = env._state.asked
        infos = env.step(actions)[4]
        assert not (before == torch.from_numpy(actions)[:, None]).any()
        since = np.where(infos["delivered"], 0, since + 1)
        assert since.max() < 3


def test_reset_options(table: ExpertTable):
    env = make_vec(table, 3)
    env.reset(seed=0, options={"budget_usd_per_query": 0.01})
    assert state_of(env).budget_usd.tolist() == pytest.approx([0.06] * 3)
    env.step(np.zeros(3, int))
    before = state_of(env)
    env.reset(options={"reset_mask": np.array([False, True, False])})
    assert state_of(env).t.tolist() == [1, 0, 1] and state_of(env).rows[0].equal(before.rows[0])
    assert not state_of(env).rows[1].equal(before.rows[1])
    single = make(table)
    single.reset(seed=0, options={"budget_usd_per_query": 0.01})
    assert float(state_of(unwrapped(single)).budget_usd) == pytest.approx(0.06)


def test_environments_in_other_processes(table: ExpertTable):
    """Gymnasium forks after it has made one environment; torch must not have started threads by then."""
    code = (
        "import gymnasium, leeroo_env; e = gymnasium.make_vec('Leeroo-v0', num_envs=2, horizon=4,"
        " vectorization_mode='async'); e.reset(seed=0); e.step(e.action_space.sample()); e.close(); print('played')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "played\n", done.stderr


def test_the_table_stays_on_its_device(table: ExpertTable):
    elsewhere = table.to("meta")
    assert resolve(elsewhere).device.type == "meta" and resolve(elsewhere, device="meta").device.type == "meta"
    assert resolve(table, "expert-2, expert-0").experts == ("expert-2", "expert-0")


def test_fixed_budget_and_horizon(table: ExpertTable):
    env = gymnasium.make_vec("Leeroo-v0", num_envs=4, table=table, horizon=3, budget=0.002)
    assert isinstance(env, LeerooVectorEnv)
    env.reset(seed=0)
    assert state_of(env).budget_usd.tolist() == pytest.approx([0.006] * 4)


def test_misuse_is_refused(table: ExpertTable):
    env = make_vec(table, 2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2, int))
    env.reset(seed=0)
    for actions in (np.array([0, 4]), np.array([-1, 0]), np.zeros(3, int)):
        with pytest.raises(ValueError, match="actions must be"):
            env.step(actions)
    with pytest.raises(ValueError, match="whole numbers"):
        env.step(np.array([0.7, 1.2]))
    for budget in (-1.0, float("nan"), [0.1, 0.0]):
        with pytest.raises(ValueError, match="finite and above 0"):
            env.reset(options={"budget_usd_per_query": budget})
    with pytest.raises(ValueError, match="3 seeds for 2 environments"):
        env.reset(seed=[1, 2, 3])


def test_render_tells_what_happened(table: ExpertTable):
    env = make(table, render_mode="ansi")
    env.reset(seed=0)
    assert str(env.render()).startswith("query 0/6, $")
    _, _, _, _, info = env.step(1)
    assert "expert-1: " in str(env.render()) and f"score {info['score']:.2f}" in str(env.render())
    vector = make_vec(table, 2, render_mode="ansi")
    vector.reset(seed=0), vector.step(np.array([0, 3]))
    first, second = vector.render() or ()
    assert "expert-0" in str(first) and "expert-3" in str(second)


def test_render_tells_what_was_asked_and_what_was_delivered():
    env = make(answers_table(), render_mode="ansi", max_calls=2)
    env.reset(seed=0, options={"budget_usd_per_query": 1.0})
    cost_usd = env.step(1)[4]["cost_usd"]
    assert env.render().startswith("query 0/6, $") and env.render().endswith(f": expert-1: ${cost_usd:.6f}")
    score = env.step(4)[4]["score"]
    assert env.render().startswith("query 1/6, $") and env.render().endswith(f": delivered, score {score:.2f}")
    env.step(1)
    score = env.step(1)[4]["score"]
    assert env.render().endswith(f": expert-1: $0.000000; delivered, score {score:.2f}"), "the Mth call delivers"


def test_sb3_adapter_with_several_calls():
    vector, twin = (make_vec(answers_table(), 3, max_calls=2) for _ in range(2))
    env = LeerooSB3VecEnv(vector)
    env.seed(4)
    np.testing.assert_array_equal(env.reset(), twin.reset(seed=4)[0])
    assert env.action_space.n == 5 and env.observation_space.shape == (5 + 4 * 4 + 5,)
    for t in range(24):
        actions = np.array([0, t % 2 * 4, 4])
        observations, rewards, dones, infos = env.step(actions)
        expected = twin.step(actions)
        np.testing.assert_array_equal(observations, expected[0])
        np.testing.assert_array_equal(rewards, expected[1])
        assert [bool(i) for i in infos] == dones.tolist() == expected[2].tolist()
        if dones[2]:
            np.testing.assert_array_equal(infos[2]["terminal_observation"], expected[4]["final_obs"][2])
            assert infos[2]["episode"]["l"] == 6
    assert env.action_masks().shape == (3, 5)


def test_sb3_adapter(table: ExpertTable):
    vector, twin = make_vec(table, 3), make_vec(table, 3)
    env = LeerooSB3VecEnv(vector)
    env.seed(4)
    np.testing.assert_array_equal(env.reset(), twin.reset(seed=4)[0])
    for t in range(12):
        observations, rewards, dones, infos = env.step(np.array([t % 4, 1, 2]))
        expected = twin.step(np.array([t % 4, 1, 2]))
        np.testing.assert_array_equal(observations, expected[0])
        np.testing.assert_array_equal(rewards, expected[1])
        assert dones.all() == (t % 6 == 5) and [bool(i) for i in infos] == dones.tolist()
        if dones.all():
            np.testing.assert_array_equal(infos[1]["terminal_observation"], expected[4]["final_obs"][1])
            assert infos[1]["episode"]["l"] == 6 and infos[1]["TimeLimit.truncated"] is False
    masks = env.action_masks()
    assert masks.shape == (3, 4) and masks.dtype == bool
    np.testing.assert_array_equal(np.stack(env.env_method("action_masks")), masks)
    assert env.has_attr("action_masks") and not env.has_attr("nonsense")
    VecMonitor(env).reset()


@CALLS
def test_state_dict_goes_on_where_it_was(max_calls: int):
    one, other = (make_vec(answers_table(), 3, max_calls=max_calls) for _ in range(2))
    one.reset(seed=1), other.reset(seed=2)
    one.step(np.array([0, 1, 2]))
    stored = {name: value.clone() for name, value in one.state_dict().items()}
    n = n_actions(one)
    for _ in range(8):
        other.step(np.array([0, 1, n - 1]))
    expected = [one.step(np.array([i % n, 1, 2])) for i in range(20 * max_calls)]
    np.testing.assert_array_equal(other.load_state_dict(stored), dynamics.observe(other.rules, state_of(other)).numpy())
    for i, (observations, rewards, terminated, _, infos) in enumerate(expected):
        again = other.step(np.array([i % n, 1, 2]))
        np.testing.assert_array_equal(again[0], observations)
        np.testing.assert_array_equal(again[1], rewards)
        if terminated.any():
            np.testing.assert_array_equal(again[4]["episode"]["r"], infos["episode"]["r"])


def test_state_dicts_with_the_old_names_of_fields_load():
    one, other = (make_vec(answers_table(), 3, max_calls=3) for _ in range(2))
    one.reset(seed=1), other.reset(seed=2)
    one.step(np.array([0, 1, 2]))
    stored = one.state_dict()
    stored["state.polled"] = stored.pop("state.call_features")
    np.testing.assert_array_equal(other.load_state_dict(stored), dynamics.observe(one.rules, one._state).numpy())
