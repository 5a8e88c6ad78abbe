"""DevicePPO learns what stable-baselines3's PPO learns, and behaves as an algorithm of stable-baselines3."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from agents.ppo.ppo import DevicePPO
from agents.training.checkpoint import restore_checkpoint, save_checkpoint
from leeroo_env import InputError
from tests.agents.ppo.models import (
    POLICIES,
    SETTINGS,
    B,
    H,
    Make,
    Recorder,
    learn,
    learned,
    same_bits,
    same_env,
    same_episodes,
    within_rounding,
)

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size", "ignore:You are trying to run")

COMBINED = [("MLP", name) for name in SETTINGS]
COMBINED += [(policy, name) for policy in list(POLICIES)[1:] for name in ("default", "episodes in mid-course")]


@pytest.mark.parametrize(("policy", "chosen"), COMBINED)
def test_learns_what_sb3_learns(make: Make, policy: str, chosen: str):
    """Protects the minibatches' order, the draws of actions, the loss, Adam and the statistics of episodes."""
    models, episodes = [], []
    for algorithm in (PPO, DevicePPO):
        models.append(make(algorithm, policy, **SETTINGS[chosen]))
        episodes.append(learn(models[-1]).episodes)
    within_rounding(*models)
    same_episodes(*episodes)
    same_episodes(*(model.ep_info_buffer for model in models))
    same_env(*models)
    assert models[0]._n_updates == models[1]._n_updates
    assert np.array_equal(models[0]._last_episode_starts, models[1]._last_episode_starts)
    if chosen != "target KL":
        logged = [model.logger.name_to_value for model in models]
        for name in ("policy_gradient_loss", "value_loss", "entropy_loss", "clip_fraction", "explained_variance"):
            assert logged[1][f"train/{name}"] == pytest.approx(logged[0][f"train/{name}"], abs=1e-5), name


def test_learns_what_sb3_learns_where_episodes_are_out_of_step(make: Make):
    """One call a query, but some episodes were begun again before the others."""
    models = []
    for algorithm in (PPO, DevicePPO):
        model = make(algorithm, "MLP", n_steps=5)
        learn(model, 1)
        mask = np.arange(B) % 3 == 0
        model._last_obs, _ = model.env.env.reset(options={"reset_mask": mask})
        model._last_episode_starts = mask
        learn(model, 4, reset_num_timesteps=False)
        models.append(model)
    assert not models[1].collector.in_step
    within_rounding(*models)
    same_env(*models)


@pytest.mark.parametrize("policy", ["MLP", "MLP, 4 calls"])
def test_the_environment_continues_by_steps(make: Make, policy: str):
    """Protects the state, the streams and the returns that a rollout leaves to the environment."""
    envs = []
    for algorithm in (PPO, DevicePPO):
        model = make(algorithm, policy, n_steps=13)
        learn(model)
        envs.append(model.env)
    for actions in np.random.default_rng(0).integers(4, size=(3 * H, B)):
        (observations, rewards, ended, infos), other = (env.step(actions) for env in envs)
        assert all(map(np.array_equal, (observations, rewards, ended), other))
        same_episodes([i["episode"] for i in infos if i], [i["episode"] for i in other[3] if i])


def test_an_environments_state_is_not_changed_in_place(make: Make):
    """The state kept from between two rollouts stays as it was."""
    model = make(DevicePPO, "MLP", n_steps=5)
    learn(model, 1)
    kept = vars(model.env.env.state)
    before = deepcopy(kept)
    learn(model, 1, reset_num_timesteps=False)
    assert all(torch.equal(kept[name], before[name]) for name in kept)


@pytest.mark.parametrize("policy", ["MLP", "MLP, 4 calls", "bid price"])
def test_resumes_from_any_iteration_to_the_same_bits(make: Make, policy: str, tmp_path: Path):
    class Saving(Recorder):
        def _on_rollout_start(self) -> None:
            super()._on_rollout_start()
            save_checkpoint(tmp_path / str(self.num_timesteps), self.model, {})

    chosen = {"n_steps": 5, "batch_size": 13, "learning_rate": lambda left: 3e-3 * left}
    whole, n = make(DevicePPO, policy, **chosen), 5 * B
    whole.learn(4 * n, callback=Saving())
    for done in (n, 2 * n, 3 * n):
        resumed = make(DevicePPO, policy, **chosen)
        (path,) = (tmp_path / str(done)).iterdir()
        restore_checkpoint(path, resumed)
        learn_on = Recorder()
        resumed.learn(4 * n - done, callback=learn_on, reset_num_timesteps=False)
        same_bits(whole, resumed)
        same_env(whole, resumed)


@pytest.mark.parametrize("stop_at", [3 * B, 5 * B, 7 * B])
def test_a_callback_stops_it_where_it_is(make: Make, stop_at: int):
    """In the middle of a rollout, too, the environment is where it was stopped, and learning continues from there."""
    models = []
    for algorithm in (PPO, DevicePPO):
        model = make(algorithm, "MLP", n_steps=5)
        learn(model, 3, stop_at=stop_at)
        models.append(model)
    assert models[1].num_timesteps == models[0].num_timesteps == stop_at
    same_env(*models)
    learn(models[1], 2, reset_num_timesteps=False)
    assert models[1].num_timesteps == stop_at + 10 * B
    assert int(models[1].env.env.state.t[0]) == (stop_at // B + 10) % H


def test_saves_and_loads(make: Make, tmp_path: Path):
    model = make(DevicePPO, "bid price", learning_rate=lambda left: 1e-3 * left)
    learn(model)
    model.save(tmp_path / "model.zip")
    loaded = DevicePPO.load(tmp_path / "model.zip", device="cpu")
    same_bits(model, loaded)
    observations = model.env.reset()
    before, after = (m.predict(observations, deterministic=True)[0] for m in (model, loaded))
    assert np.array_equal(before, after)
    loaded.set_env(make(DevicePPO, "bid price").env)
    before = learned(loaded)
    learn(loaded, reset_num_timesteps=False)
    assert loaded.num_timesteps == 6 * H * B
    assert any(not torch.equal(before[name], value) for name, value in learned(loaded).items())
    learn(PPO.load(tmp_path / "model.zip", env=make(PPO, "bid price").env, device="cpu"), 1)


def test_continues_in_another_environment_or_by_other_rules(make: Make, on_graphs: Callable[[], None]):
    """Rollouts and graphs of the last ones are not used again."""
    on_graphs()
    model, other = make(DevicePPO, "MLP"), make(DevicePPO, "MLP")
    learn(model)
    model.set_env(other.env)
    learn(model)
    assert model.collector.env is other.env.env and int(other.env.env._episodes[0]) > 1
    rules = replace(other.env.env.rules, cost_weight=50.0)
    other.env.set_attr("rules", rules)
    learn(model)
    assert model.collector.rules is rules and float(model.collector.storage.rewards.min()) < -10


def test_refuses_other_environments_optimizers_and_devices(make: Make):
    model = make(DevicePPO, "MLP")
    for env in (VecNormalize(model.env), gymnasium.make("Leeroo-v0")):
        with pytest.raises(InputError, match=r"^\w+: DevicePPO plays on a LeerooSB3VecEnv; stable_baselines3.PPO"):
            DevicePPO("MlpPolicy", env, device="cpu")
    with pytest.raises(InputError, match=r"^VecNormalize: DevicePPO plays on"):
        model.set_env(VecNormalize(model.env))
    for optimizer, kwargs in (
        (torch.optim.RMSprop, {}),
        (torch.optim.AdamW, {}),
        (torch.optim.Adam, {"amsgrad": True}),
    ):
        network = {"optimizer_class": optimizer, "optimizer_kwargs": kwargs}
        with pytest.raises(
            InputError, match=f"^optimizer {optimizer.__name__}: DevicePPO learns by plain torch.optim.Adam"
        ):
            DevicePPO("MlpPolicy", model.env, policy_kwargs=network, device="cpu")
    with pytest.raises(InputError, match=r"^device meta: DevicePPO learns where the table is, on cpu$"):
        DevicePPO("MlpPolicy", model.env, device="meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_gpu_learns_what_a_cpu_learns(make: Make, policy: str, monkeypatch: pytest.MonkeyPatch):
    """Devices draw different numbers, so actions are the most likely ones, and minibatches in a CPU's order."""
    monkeypatch.setattr(Tensor, "exponential_", lambda self: self.fill_(1.0))

    def order(self: DevicePPO, t: int, b: int) -> Tensor:
        return torch.from_numpy(np.random.permutation(t * b)).to(self.device)  # noqa: NPY002 - SB3's generator

    monkeypatch.setattr(DevicePPO, "_shuffled", order)
    for chosen in ("default", "episodes in mid-course", "schedules"):
        models = [make(DevicePPO, policy, device=device, **SETTINGS[chosen]) for device in ("cpu", "cuda")]
        start = models[0].policy.state_dict()
        models[1].policy.load_state_dict(start)
        episodes = []
        for model in models:
            np.random.seed(1)  # noqa: NPY002
            episodes.append(learn(model).episodes)
        assert [episode["l"] for episode in episodes[0]] == [episode["l"] for episode in episodes[1]]
        first, second = ([episode["r"] for episode in each] for each in episodes)
        np.testing.assert_allclose(second, first, atol=1e-4)
        within_rounding(models[0], models[1], rtol=1e-2, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_continues_what_a_cpu_has_learned(make: Make, tmp_path: Path):
    """The learning rate of the file is a number, which a captured step would never see change."""
    model = make(DevicePPO, "MLP", learning_rate=lambda left: 1e-3 * left)
    learn(model)
    model.save(tmp_path / "model.zip")
    loaded = DevicePPO.load(tmp_path / "model.zip", env=make(DevicePPO, "MLP", device="cuda").env, device="cuda")
    learn(loaded, reset_num_timesteps=False)
    rate = loaded.policy.optimizer.param_groups[0]["lr"]
    assert isinstance(rate, Tensor) and rate.is_cuda
