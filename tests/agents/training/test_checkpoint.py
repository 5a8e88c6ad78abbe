"""A checkpoint by itself: it continues to the same bits, is whole or absent, and is refused where it does not fit."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.ppo.ppo import DevicePPO
from agents.training import checkpoint
from agents.training.callbacks import Progress
from agents.training.checkpoint import KEEP, latest_checkpoint, restore_checkpoint, save_checkpoint
from leeroo_env import InputError, LeerooVectorEnv
from leeroo_env.manifest import write_manifest
from leeroo_env.sb3 import LeerooSB3VecEnv
from tests.conftest import random_table
from tests.flipping import flipped
from tests.killing import killed_everywhere

B, H = 4, 8
ALGORITHMS: dict[str, tuple[type[BaseAlgorithm], dict[str, Any]]] = {
    "ppo": (DevicePPO, {"n_steps": H, "batch_size": 16}),
    "a2c": (A2C, {"n_steps": 5}),  # checkpoints fall within episodes
    "maskable_ppo": (MaskablePPO, {"n_steps": H, "batch_size": 16}),
}


def make(name: str = "ppo", seed: int = 0, experts: int = 4, dim: int = 5, width: int = 8) -> BaseAlgorithm:
    kind, settings = ALGORITHMS[name]
    env = LeerooSB3VecEnv(LeerooVectorEnv(B, random_table(k=experts, dim=dim), horizon=H))
    return kind("MlpPolicy", env, policy_kwargs={"net_arch": [width]}, seed=seed, device="cpu", **settings)


def learn(model: BaseAlgorithm, steps: int = 2 * B * H) -> BaseAlgorithm:
    return model.learn(steps, reset_num_timesteps=model.num_timesteps == 0)


def tensors(model: BaseAlgorithm, where: Path) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds of it."""
    save_checkpoint(where, model, {})
    path = latest_checkpoint(where)
    assert path is not None
    return load_file(path / "state.safetensors")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A checkpoint of `make()` after two iterations."""
    save_checkpoint(tmp_path / "checkpoints", learn(make()), {"best": 0.5, "evaluations": 3})
    return tmp_path / "checkpoints" / f"step-{2 * B * H:012d}"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_fresh_model_continues_to_the_same_bits(name: str, tmp_path: Path):
    model = learn(make(name))
    save_checkpoint(tmp_path / "half", model, {"best": 0.5})
    whole = tensors(learn(model), tmp_path / "whole")

    restored = make(name, seed=7)
    torch.manual_seed(99)
    path = latest_checkpoint(tmp_path / "half")
    assert path is not None and restore_checkpoint(path, restored) == {"best": 0.5}
    again = tensors(learn(restored), tmp_path / "again")
    assert whole.keys() == again.keys() and {name.split(".")[0] for name in whole} >= {"policy", "optimizer", "env"}
    for key in whole:
        assert torch.equal(whole[key], again[key]), key
    assert restored.num_timesteps == model.num_timesteps and restored._n_updates == model._n_updates  # type: ignore[attr-defined]


def test_storing_and_restoring_changes_nothing(stored: Path, tmp_path: Path):
    model = make(seed=3)
    assert restore_checkpoint(stored, model) == {"best": 0.5, "evaluations": 3}
    first, second = load_file(stored / "state.safetensors"), tensors(model, tmp_path / "second")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_off_policy_algorithms_keep_their_networks_and_counters(tmp_path: Path):
    """The replay buffer is not kept, so the bits that follow differ."""

    def make() -> DQN:
        env = LeerooSB3VecEnv(LeerooVectorEnv(B, random_table(), horizon=H))
        settings: dict[str, Any] = {"learning_starts": 16, "target_update_interval": 24, "device": "cpu"}
        return DQN("MlpPolicy", env, seed=0, buffer_size=100, batch_size=8, **settings)

    model = make()
    model.learn(64)
    before = tensors(model, tmp_path)
    restored = make()
    restore_checkpoint(tmp_path / "step-000000000064", restored)
    assert restored.num_timesteps == 64 and restored.exploration_rate == model.exploration_rate
    for key, value in restored.policy.state_dict().items():  # the target network's, too
        assert torch.equal(value, before[f"policy.{key}"]), key
    restored.learn(64, reset_num_timesteps=False)
    assert restored.num_timesteps == 128


def test_only_the_last_two_are_kept_and_the_latest_is_found(tmp_path: Path):
    assert latest_checkpoint(tmp_path) is None and latest_checkpoint(tmp_path / "missing") is None
    model = make()
    for _ in range(4):
        save_checkpoint(tmp_path, learn(model, B * H), {})
    assert KEEP == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000000096", "step-000000000128"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000000000128"


def test_a_half_written_one_is_not_found_and_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = learn(make())
    save_checkpoint(tmp_path, model, {})
    learn(model)

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(checkpoint, "write_json", full)
        save_checkpoint(tmp_path, model, {})
    assert not list(tmp_path.glob(".*")), "nothing is left of it"
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000000000064"
    (tmp_path / ".step-000000000128.1.tmp").mkdir()  # as a killed process leaves it
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000000000064"
    save_checkpoint(tmp_path, model, {})
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000000000128" and not list(tmp_path.glob(".*"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.safetensors", cut),
        ("state.safetensors", Path.unlink),
        ("state.safetensors", lambda path: path.write_bytes(b"")),
        ("state.json", cut),
        ("state.json", Path.unlink),
        ("state.json", lambda path: path.write_text("[]")),
    ],
    ids=["cut tensors", "no tensors", "empty tensors", "cut state", "no state", "a list"],
)
def test_a_damaged_file_is_named_in_one_line(name: str, damage: Any, stored: Path):
    damage(stored / name)
    with pytest.raises(InputError) as error:
        restore_checkpoint(stored, make())
    assert str(error.value).startswith(str(stored / name)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "other",
    [{"dim": 6}, {"experts": 3}, {"width": 9}],
    ids=["another embedding", "other experts", "another network"],
)
def test_one_of_another_run_is_refused_in_one_line(other: dict[str, Any], stored: Path):
    with pytest.raises(InputError, match="does not fit this run") as error:
        restore_checkpoint(stored, make(**other))
    assert "\n" not in str(error.value)


def test_any_flipped_bit_is_refused_by_the_name_of_its_file(stored: Path):
    rng = random.Random(0)
    for file in sorted(stored.iterdir()):
        before = file.read_bytes()
        for _ in range(15):
            file.write_bytes(flipped(before, rng))
            with pytest.raises(InputError) as error:
                restore_checkpoint(stored, make())
            assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)
            assert "the run goes on from the one before" in str(error.value)
        file.write_bytes(before)
    restore_checkpoint(stored, make())


def changed(state: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a JSON object with another value at a path; None removes it."""
    copy = json.loads(json.dumps(state))
    *parents, last = path.split(".")
    owner = copy
    for name in parents:
        owner = owner[name]
    if value is None:
        del owner[last]
    else:
        owner[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("counters", None, r"state\.json: counters: Field required"),
        ("counters.num_timesteps", None, r"state\.json: counters\.num_timesteps: Field required"),
        ("counters.num_timesteps", "many", r"state\.json: counters\.num_timesteps: "),
        ("counters.num_timesteps", -1, r"state\.json: counters\.num_timesteps: "),
        ("counters.policy", 3, r"state\.json: counters\.policy: Extra inputs are not permitted"),
        ("counters.__class__", 3, r"state\.json: counters\.__class__: Extra inputs are not permitted"),
        ("episode_starts", None, r"state\.json: episode_starts: Field required"),
        ("episode_starts", [True], "does not fit this run: 1 episodes, not 4"),
        ("rng", None, r"state\.json: rng: Field required"),
        ("rng.python", [3, [1, 2], None], "does not fit this run: "),
        ("rng.numpy", ["MT19937", [1], 0, 0, 0.0], "does not fit this run: "),
        ("rng.numpy", ["MT19937", [-1] * 624, 0, 0, 0.0], "does not fit this run: "),
        ("rng.numpy", [], r"state\.json: rng\.numpy"),
        ("progress", None, r"state\.json: progress: Field required"),
        ("progress", {"best": 0.5}, "does not fit this run: .*evaluated_at"),
        ("progress", {"evaluated_at": 3, "worst": 0.5}, "does not fit this run: .*worst"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_state_that_lacks_or_adds_something_is_one_line(path: str, value: Any, message: str, stored: Path):
    """With a manifest that vouches for it, so that only its content is looked at."""
    file = stored / "state.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, value)))
    write_manifest(stored)
    with pytest.raises(InputError, match=message) as error:
        restore_checkpoint(stored, make(), Progress)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(stored))


def test_one_without_its_manifest_is_refused_unless_it_never_had_one(stored: Path):
    (stored / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest\.json: missing"):
        restore_checkpoint(stored, make())
    state = json.loads((stored / "state.json").read_text())
    (stored / "state.json").write_text(json.dumps(changed(state, "manifest", None)))
    assert restore_checkpoint(stored, make()) == {"best": 0.5, "evaluations": 3}


def test_one_killed_anywhere_is_whole_or_not_there(tmp_path: Path):
    model = learn(make())
    save_checkpoint(tmp_path, model, {"number": 0})
    learn(model)
    for _ in killed_everywhere(lambda: save_checkpoint(tmp_path, model, {"number": 1}), every=4):
        path = latest_checkpoint(tmp_path)
        assert path is not None and restore_checkpoint(path, make())["number"] in (0, 1)
        shutil.rmtree(tmp_path / "step-000000000128", ignore_errors=True)


def test_one_with_a_tensor_missing_is_refused(stored: Path, tmp_path: Path):
    copy = tmp_path / stored.name
    shutil.copytree(stored, copy)
    state = load_file(stored / "state.safetensors")
    del state["env.episodes"]
    save_file(state, copy / "state.safetensors")
    write_manifest(copy)
    with pytest.raises(InputError, match="does not fit this run"):
        restore_checkpoint(copy, make())
