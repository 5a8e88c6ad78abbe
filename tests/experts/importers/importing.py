"""What the tests of all importers use."""

import warnings
from pathlib import Path

import numpy as np
import pytest

import train
from agents.training.config import TrainConfig
from experts.importers.command import main
from leeroo_env import ExpertTable, LeerooVectorEnv

QUESTIONS = 40


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command line."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture, out: Path, *arguments: object) -> str:
    """The one-line error message for bad input, after which nothing is written."""
    before = sorted(out.parent.rglob("*"))
    code, printed, error = run(capsys, *arguments, "--out", out)
    assert (code, printed) == (2, "")
    assert error.count("\n") == 1 and error.endswith("\n")
    assert sorted(out.parent.rglob("*")) == before
    return error


def embeddings(directory: Path, rows: int = QUESTIONS) -> Path:
    path = directory / "embeddings.npy"
    np.save(path, np.random.default_rng(0).standard_normal((rows, 8)).astype(np.float32))
    return path


def load_and_step(path: Path) -> ExpertTable:
    """The table, after an environment on it has taken a few steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests themselves look at the incomplete queries that are left out
        table = ExpertTable.load(path)
    env = LeerooVectorEnv(2, table=table, split="train", horizon=4)
    observation, _ = env.reset(seed=0)
    for _ in range(5):
        observation, reward, *_ = env.step(env.action_space.sample())
    assert np.isfinite(observation).all() and np.isfinite(reward).all()
    return table


def train_briefly(path: Path) -> None:
    """train.py on the table, with its evaluation, which takes seconds: once for each importer."""
    run_dir = path.parent / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = TrainConfig(
            str(path), algo="a2c", max_calls=1, timesteps=32, n_envs=4, horizon=2, run_dir=str(run_dir)
        )
        assert train.run(config) == 0 and (run_dir / "evaluation.json").is_file()
