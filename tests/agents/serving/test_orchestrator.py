"""What was trained can be used, from NumPy arrays, and refuses what makes no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from agents import Orchestrator
from agents.training.config import TrainConfig
from leeroo_env import InputError
from tests.synthetic import synthetic_table


@pytest.fixture(scope="module", params=["mlp", "bid-price"])
def run_dir(
    request: pytest.FixtureRequest, small_synthetic: Path, bid_price_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "bid-price":
        return bid_price_run
    path = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(str(small_synthetic), policy="mlp", timesteps=10_000, n_envs=32, run_dir=str(path))
    assert train.run(config) == 0
    return path


def test_choices_are_experts_that_fit(run_dir: Path):
    orchestrator = Orchestrator.load(run_dir)
    assert orchestrator.experts == ["small", "coder", "large"]
    table = synthetic_table()
    x = table.embeddings[:200].numpy()
    chosen = orchestrator.choose(x, np.full(200, 0.05), np.full(200, 64))
    assert chosen.shape == (200,) and chosen.dtype == np.int64 and set(chosen) <= {0, 1, 2}
    np.testing.assert_array_equal(chosen, orchestrator.choose(x, 0.05, 64))
    np.testing.assert_array_equal(chosen[:7], orchestrator.choose(x[:7], 0.05, 64))
    assert set(orchestrator.choose(x, 0.00015, 1)) == {0}, "the others' mean costs do not fit"
    assert orchestrator.choose(x[:0], np.zeros(0), np.zeros(0)).shape == (0,)


def test_loading_twice_chooses_alike_and_runs_no_pickle(run_dir: Path):
    x = synthetic_table().embeddings[:100].numpy()
    first, second = (Orchestrator.load(run_dir).choose(x, 0.02, 40) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert {path.suffix for path in (run_dir / "policy").iterdir()} == {".json", ".safetensors"}
    assert not [path for path in run_dir.rglob("*") if path.suffix in (".pkl", ".zip", ".pt", ".pth")]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "1 texts for 3 embeddings"),
        (["a", "b"], "2 texts for 3 embeddings"),
        (b"one", "must be strings in order, not bytes"),
        ({"a": 1, "b": 2, "c": 3}, "must be strings in order, not dict"),
        (["a", None, "c"], r"texts\[1\] is NoneType"),
        (7, "must be strings in order, not int"),
    ],
)
def test_texts_are_as_many_as_queries(run_dir: Path, texts: Any, message: str):
    orchestrator, x = Orchestrator.load(run_dir), np.zeros((3, 16))
    with pytest.raises(InputError, match=message):
        orchestrator.choose(x, 1.0, 3, texts=texts)
    with pytest.raises(InputError, match=message.replace("texts", "domains")):
        orchestrator.choose(x, 1.0, 3, domains=texts)
    one = orchestrator.choose(x[:1], 0.02, 3, texts="one text")
    np.testing.assert_array_equal(one, orchestrator.choose(x[:1], 0.02, 3, texts=["one text"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("text", 1.0, 3), "embeddings must be numbers"),
        (([[1.0], [1.0, 2.0]], 1.0, 3), "embeddings must be numbers"),
        ((np.zeros((3, 16)), "much", 3), "must be numbers"),
        ((np.zeros((3, 16)), 1.0, None), "must be finite"),
        ((np.zeros((3, 5)), 1.0, 3), r"embeddings are \[3, 5\], not \[B, 16\]"),
        ((np.zeros(16), 1.0, 3), r"embeddings are \[16\], not"),
        ((np.zeros((3, 16)), [1.0, 2.0], 3), r"must be numbers or \[3\]"),
        ((np.full((3, 16), np.nan), 1.0, 3), "must be finite"),
        ((np.zeros((3, 16)), -1.0, 3), "not negative"),
    ],
)
def test_senseless_arguments_are_refused(run_dir: Path, arguments: tuple, message: str):
    with pytest.raises(InputError, match=message):
        Orchestrator.load(run_dir).choose(*arguments)


def test_broken_run_directories_are_refused(run_dir: Path, tmp_path: Path):
    with pytest.raises(InputError, match="holds no policy/"):
        Orchestrator.load(tmp_path)
    policy = tmp_path / "policy"
    policy.mkdir()
    weights = (run_dir / "policy" / "policy.safetensors").read_bytes()
    description = json.loads((run_dir / "policy" / "policy.json").read_text())

    def refuses(message: str) -> None:
        with pytest.raises(InputError, match=message):
            Orchestrator.load(tmp_path)

    refuses(r"policy\.json: missing")
    (policy / "policy.json").write_text(json.dumps(description))
    refuses(r"policy\.safetensors: missing")
    (policy / "policy.safetensors").write_bytes(weights[:100])
    refuses(r"policy\.safetensors: cannot be read")
    (policy / "policy.safetensors").write_bytes(weights)
    (policy / "policy.json").write_text(json.dumps({**description, "experts": ["a", "b"]}))
    refuses("mean_cost_usd: 3 costs for 2 experts")
    arguments = description["policy_kwargs"]
    other = {"net_arch": [3]} if "net_arch" in arguments else {**arguments, "mean_cost_usd": [1e-4, 2e-4]}
    (policy / "policy.json").write_text(json.dumps({**description, "policy_kwargs": other}))
    refuses("weights and description do not fit")
    (policy / "policy.json").write_text(json.dumps({**description, "format": 99}))
    refuses("format: 99 is not 2")
    (policy / "policy.json").write_text(json.dumps({**description, "algorithm": "os.system"}))
    refuses("algorithm: 'os.system' is none of ppo")
