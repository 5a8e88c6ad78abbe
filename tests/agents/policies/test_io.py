"""Stored policies are whole, damage is named, and those with the names of earlier versions load to the same tensors."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from agents.estimators.ensemble import fit_predictor
from agents.policies.description import describe_policy
from agents.policies.io import RENAMED_PREFIXES, empty_policy, load_policy, load_predictor, save_policy, save_predictor
from agents.policies.multi_call import MultiCallPolicy
from agents.routers.policy import action_scores
from agents.serving.orchestrator import Orchestrator
from agents.training.checkpoint import latest_checkpoint, restore_checkpoint, save_checkpoint
from agents.training.config import TrainConfig
from agents.training.factory import make_model
from leeroo_env import InputError, dynamics
from leeroo_env.files import read_tensors, write_tensors
from leeroo_env.manifest import write_manifest
from tests.conftest import random_table
from tests.flipping import flipped
from tests.killing import killed_everywhere

H = 8


def make(seed: int) -> tuple[BaseAlgorithm, dynamics.Rules, dict]:
    """A policy for three calls a query with random parameters."""
    answers = np.random.default_rng(0).choice(["a", "b", "c"], size=(60, 4)).astype(object)
    table = random_table(answers=answers)
    config = TrainConfig(max_calls=3, horizon=H, n_envs=4, seed=seed)
    rules = dynamics.make_rules(table, horizon=H, max_calls=3, features=torch.rand(60, 8))
    model, settings = make_model(config, "bid-price", rules)
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.policy.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return model, rules, settings


def with_earlier_names(tensors: dict[str, Tensor], before: str = "") -> dict[str, Tensor]:
    named = dict(tensors)
    for old, new in RENAMED_PREFIXES.items():
        for name in [name for name in named if name.startswith(before + new)]:
            named[before + old + name.removeprefix(before + new)] = named.pop(name)
    assert sum(".asking." in name or ".patience." in name for name in named) == 15
    return named


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


@pytest.mark.parametrize("hide_budget", [False, True])
def test_the_shortcut_to_preferences_gives_those_of_the_distribution(hide_budget: bool):
    model, rules, settings = make(seed=0)
    description = describe_policy(rules, "ppo", settings["policy_kwargs"], "bid-price", hide_budget)
    policy: Any = empty_policy(description)
    policy.load_state_dict(model.policy.state_dict())
    observations = dynamics.observe(rules, dynamics.sample_episodes(rules, torch.arange(20)))
    assert torch.equal(action_scores(policy, observations), policy.get_distribution(observations).distribution.logits)


@pytest.mark.parametrize("names", [None, ["a@short", "b", "a", "b@long"]])
def test_a_loaded_policy_knows_variants_by_their_names(tmp_path: Path, names: list[str] | None):
    """Which experts are one model is not stored, so that files from before it was known load as well."""
    model, rules, settings = make(seed=0)
    if names is not None:
        table = random_table(names=names, answers=np.full((60, 4), "a", dtype=object))
        rules = dynamics.make_rules(table, horizon=H, max_calls=3, features=torch.rand(60, 8))
    save_policy(
        tmp_path / "policy", model.policy, describe_policy(rules, "ppo", settings["policy_kwargs"], "bid-price")
    )
    policy, _ = load_policy(tmp_path / "policy")
    assert isinstance(policy, MultiCallPolicy)
    found = policy.answer_model.models
    assert (None if found is None else found.tolist()) == (None if names is None else [2, 1, 2, 1])


def test_loading_imports_no_compiler(tmp_path: Path):
    """It comes with torch's first optimizer, and takes longer than all the rest."""
    model, rules, settings = make(seed=0)
    save_policy(tmp_path, model.policy, describe_policy(rules, "ppo", settings["policy_kwargs"], "bid-price"))
    program = f"""
import sys
from pathlib import Path
from agents.policies.io import load_policy
load_policy(Path({str(tmp_path)!r}))
assert 'torch._dynamo' not in sys.modules and 'experts.grading' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])


def test_a_policy_with_earlier_names_loads(tmp_path: Path):
    model, rules, settings = make(seed=0)
    save_policy(tmp_path, model.policy, describe_policy(rules, "ppo", settings["policy_kwargs"], "bid-price"))
    path = tmp_path / "policy.safetensors"
    write_tensors(path, with_earlier_names(read_tensors(path)))
    write_manifest(path.parent)
    policy, _ = load_policy(tmp_path)
    assert_same(policy.state_dict(), model.policy.state_dict())
    observations = dynamics.observe(rules, dynamics.sample_episodes(rules, torch.arange(20))).numpy()
    first, second = (p.predict(observations, deterministic=True)[0] for p in (policy, model.policy))
    assert np.array_equal(first, second)


def test_weights_and_description_are_always_of_one_step(tmp_path: Path):
    """Killed anywhere while a later policy is written, the directory holds the earlier or the later one."""
    directory = tmp_path / "policy"
    models = [make(seed=seed) for seed in (0, 1)]
    rules, settings = models[0][1:]
    description = describe_policy(rules, "ppo", settings["policy_kwargs"], "bid-price")
    predictor = fit_predictor(rules.table, 0)
    save_predictor(directory, predictor)

    def save(i: int) -> None:
        weights = next(iter(models[i][0].policy.parameters()))
        weights.data.fill_(i)
        save_policy(directory, models[i][0].policy, description.model_copy(update={"step": i}))

    save(0)
    for _ in killed_everywhere(lambda: save(1), every=3):
        policy, kept = load_policy(directory)
        assert kept.step in (0, 1) and bool((next(iter(policy.parameters())) == kept.step).all())
        assert torch.equal(load_predictor(directory).out_of_fold.score, predictor.out_of_fold.score)


def test_any_flipped_bit_is_refused_by_the_name_of_its_file(bid_price_run: Path, tmp_path: Path):
    policy, rng = shutil.copytree(bid_price_run / "policy", tmp_path / "policy"), random.Random(0)
    assert {file.name for file in policy.iterdir()} == {
        "manifest.json",
        "policy.json",
        "policy.safetensors",
        "predictor.safetensors",
    }
    for file in sorted(policy.iterdir()):
        before = file.read_bytes()
        for _ in range(15):
            file.write_bytes(flipped(before, rng))
            with pytest.raises(InputError) as error:
                Orchestrator.load(tmp_path)
            assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)
        file.write_bytes(before)
    Orchestrator.load(tmp_path)


def test_a_description_that_lacks_a_field_is_one_line(bid_price_run: Path, tmp_path: Path):
    """Every field of it, and every argument of the policy's class; also one that is of another type."""
    policy = shutil.copytree(bid_price_run / "policy", tmp_path / "policy")
    whole = json.loads((policy / "policy.json").read_text())
    lacking = [{k: v for k, v in whole.items() if k != name} for name in whole]
    kwargs = whole["policy_kwargs"]
    lacking += [whole | {"policy_kwargs": {k: v for k, v in kwargs.items() if k != name}} for name in kwargs]
    lacking += [whole | {"policy_kwargs": kwargs | {name: "x"}} for name in kwargs]
    values: tuple[Any, ...] = ("x", -1, [], {}, 1e40, [None])
    lacking += [whole | {name: value} for name in whole for value in values]
    refused = 0
    for description in lacking:
        (policy / "policy.json").write_text(json.dumps(description))
        write_manifest(policy)
        try:
            Orchestrator.load(tmp_path)
        except InputError as error:
            refused += 1
            assert str(error).startswith(f"{policy}/") and "\n" not in str(error)
    assert refused > len(lacking) // 2


def test_a_checkpoint_with_earlier_names_is_restored(tmp_path: Path):
    model, _, _ = make(seed=0)
    save_checkpoint(tmp_path, model.learn(1), {})
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    path = checkpoint / "state.safetensors"
    write_tensors(path, with_earlier_names(read_tensors(path), "policy."))
    write_manifest(path.parent)
    resumed, _, _ = make(seed=1)
    restore_checkpoint(checkpoint, resumed)
    assert_same(resumed.policy.state_dict(), model.policy.state_dict())
