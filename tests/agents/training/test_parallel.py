"""Data-parallel training: what every process holds, what the first one writes, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import train
from agents.distributed import Processes
from agents.training.config import TrainConfig
from agents.training.parallel import OF_TABLE, check_parallel, check_resumed, own_rules, parts_of_rules, share_of
from leeroo_env import ExpertTable, InputError, LeerooVectorEnv
from leeroo_env.dynamics import Rules, make_rules
from tests.agents.test_distributed import join_two
from tests.conftest import random_table

ROOT = Path(__file__).parents[3]
TRAIN = 30  # queries


def made_rules(table: ExpertTable) -> Rules:
    """With made-up numbers of every query, and evidence that is the same for all."""
    generator = torch.Generator().manual_seed(0)
    reliability, features = (torch.rand(len(table), k, generator=generator) for k in (4, 8))
    return make_rules(table, "train", 5, max_calls=2, reliability=reliability, features=features)


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    """On a mapped table."""
    answers = np.random.default_rng(1).choice(["a", "b", "c"], size=(3 * TRAIN, 4)).astype(object)
    random_table(n=3 * TRAIN, answers=answers).save_mapped(tmp_path / "table")
    return made_rules(ExpertTable.load(tmp_path / "table"))


@pytest.mark.parametrize("world", [2, 4, 7])
def test_every_training_query_is_in_one_share(rules: Rules, world: int):
    shares = [share_of(rules, Processes(0, world), rank) for rank in range(world)]
    held = [len(share["scores"]) for share in shares]
    assert sum(held) == TRAIN and max(held) <= -(-TRAIN // world)
    for name, of_all in (
        ("scores", rules.table.scores),
        ("features", rules.features),
        ("costs_usd", rules.table.costs_usd),
    ):
        joined = torch.cat([share[name] for share in shares])
        assert sorted(joined.tolist()) == sorted(of_all[rules.rows].tolist()), name
        for share in shares:  # a copy of these rows alone, and not a view of all of the table
            assert share[name].untyped_storage().nbytes() == share[name].numel() * share[name].element_size()
    assert {len(share["evidence"]) for share in shares} == {1}  # the same for all


def test_a_share_is_played_as_in_the_whole_table(rules: Rules):
    """The same queries by the same actions: observations, rewards and money."""
    own = own_rules(rules, Processes(0, 2))
    assert own.cost_scale is rules.cost_scale and len(own.table) == TRAIN // 2
    envs = [LeerooVectorEnv(3, rules=one) for one in (own, replace(rules, rows=rules.rows[::2]))]
    actions = np.random.default_rng(0).integers(4, size=(12, 3))
    observations = [[env.reset(seed=0)[0], *(env.step(a)[0] for a in actions)] for env in envs]
    np.testing.assert_array_equal(observations[0], observations[1])
    assert torch.equal(*(env.returns for env in envs))


def test_what_is_sent_makes_the_same_rules(rules: Rules):
    share = share_of(rules, Processes(0, 2), 1)
    parts = parts_of_rules(share, rules.table.info)
    rows = rules.rows[1::2]
    assert all(torch.equal(getattr(parts["table"], name), getattr(rules.table, name)[rows]) for name in OF_TABLE)
    assert torch.equal(parts["reliability"], rules.reliability[rows]) and parts["table"].experts == rules.table.experts
    assert torch.equal(parts["evidence"], torch.zeros(TRAIN // 2, 4)) and parts["table"].has_answers()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"algo": "a2c"}, "algo a2c: only ppo learns in several processes"),
        ({"algo": "trpo"}, "algo trpo: only ppo"),
        ({"tune": 4}, "tune 4: searches in one process"),
        ({"horizon": 11}, "horizon 11: must be at most 10, the training queries of each of the 3 processes"),
    ],
)
def test_refuses_what_several_processes_cannot_do(changed: dict, message: str):
    config = TrainConfig(**{"horizon": 10, **changed})
    with pytest.raises(InputError, match=message):
        check_parallel(config, random_table(n=3 * TRAIN), Processes(0, 3))
    check_parallel(config, random_table(n=3 * TRAIN), Processes())


def test_two_processes_train_one_agent(
    bid_price_run: Path, small_synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As one does, with the same fits; the second process says and writes nothing."""
    options = ["--table", str(small_synthetic), "--timesteps", "10000", "--n-envs", "32", "--run-dir", "run"]
    environment = {**os.environ, **join_two(monkeypatch), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py"), *options]
    other = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    monkeypatch.chdir(tmp_path)
    assert train.main(options) == 0
    assert other.communicate(timeout=60)[0] == "" and other.returncode == 0
    run = tmp_path / "run"
    scores = [json.loads((path / "evaluation.json").read_text())["routers"] for path in (run, bid_price_run)]
    assert np.mean(scores[0]["agent"]["score"]) == pytest.approx(np.mean(scores[1]["agent"]["score"]), abs=0.01)
    assert scores[0]["planned kNN"] == scores[1]["planned kNN"]
    fits = [(path / "policy" / "predictor.safetensors").read_bytes() for path in (run, bid_price_run)]
    assert fits[0] == fits[1]
    settings = [yaml.safe_load((path / "config.yaml").read_text())["hyperparameters"] for path in (run, bid_price_run)]
    assert settings[0] == {**settings[1], "processes": 2}
    with pytest.raises(InputError, match="began with 2 processes and goes on with as many, not 1"):
        check_resumed(run, Processes())
