"""A run directory is begun once, found again, and resumed only with the settings that it was begun with."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
import yaml

import train
from agents.training.config import TrainConfig
from agents.training.run_dir import begin_run, check_unchanged, config_of, latest_run
from leeroo_env import InputError


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run with seed 5, begun and stopped before its first checkpoint."""
    run_dir = tmp_path / "run"
    config = TrainConfig(seed=5, budget=(1e-5, 2e-5), run_dir=str(run_dir))
    begin_run(run_dir, config.as_settings(run_dir))
    return run_dir


def test_an_explicit_option_equal_to_its_default_is_refused_too(begun: Path, capfd: pytest.CaptureFixture):
    assert train.main(["--resume", "--run-dir", str(begun), "--seed", "0"]) == 2
    out, err = capfd.readouterr()
    assert err == f"error: {begun}: began with seed 5 and goes on with it, not 0\n" and not out


def test_settings_come_back_as_they_were(begun: Path):
    config = config_of(begun)
    assert config == TrainConfig(seed=5, budget=(1e-5, 2e-5), run_dir=str(begun))
    check_unchanged(config, begun)


@pytest.mark.parametrize(
    "option",
    [["--table", "tiny"], ["--seed", "5"], ["--budget", "1e-5", "2e-5"], ["--max-calls", "1"], ["--algo", "ppo"]],
    ids=" ".join,
)
def test_options_equal_to_what_the_run_began_with_are_taken(option: list[str], begun: Path):
    given = tyro.cli(TrainConfig, args=["--resume", "--run-dir", str(begun), *option], default=config_of(begun))
    check_unchanged(given, begun)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--table", "elsewhere"], "began with table 'tiny'"),
        (["--budget", "1e-5"], r"began with budget \[1e-05, 2e-05\]"),
        (["--experts", "nano"], "began with experts ''"),
        (["--max-calls", "4"], "began with max_calls 1"),
        (["--hide-budget"], "began with hide_budget False"),
        (["--timesteps", "1000"], "began with timesteps 500000"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_options_are_refused(option: list[str], message: str, begun: Path):
    given = tyro.cli(TrainConfig, args=["--resume", "--run-dir", str(begun), *option], default=config_of(begun))
    with pytest.raises(InputError, match=message):
        check_unchanged(given, begun)


def test_a_table_directory_is_the_same_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_dir, table = tmp_path / "run", tmp_path / "tables" / "mine"
    config = TrainConfig(table=str(table), run_dir=str(run_dir))
    begin_run(run_dir, config.as_settings(run_dir))
    monkeypatch.chdir(tmp_path)
    check_unchanged(replace(config_of(run_dir), table="tables/mine"), run_dir)


def test_config_yaml_holds_all_settings_and_versions(begun: Path):
    settings = yaml.safe_load((begun / "config.yaml").read_text())
    made_with = settings.pop("made_with")
    assert settings == TrainConfig(seed=5, budget=(1e-5, 2e-5)).as_settings(begun)
    assert set(settings) == {field.name for field in fields(TrainConfig)}
    assert made_with["torch"] == str(torch.__version__) and made_with["numpy"] == np.__version__
    assert set(made_with) == {"python", "torch", "numpy", "gymnasium", "stable-baselines3"}
    assert sorted(path.name for path in begun.iterdir()) == ["config.yaml", "manifest.json"]


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        begin_run(tmp_path / "run", {})
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for run_dir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="cannot be written: Not a directory"):
            begin_run(run_dir, {})


def test_a_run_is_never_overwritten(begun: Path):
    before = (begun / "config.yaml").read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        begin_run(begun, {})
    assert (begun / "config.yaml").read_bytes() == before


def test_the_latest_run_is_the_one_of_the_table_begun_last(tmp_path: Path):
    with pytest.raises(InputError, match="holds no run to resume"):
        latest_run(tmp_path, "mine")
    for name, table in (("b", "mine"), ("a", "mine"), ("c", "other")):
        begin_run(tmp_path / name, {"table": table})
        os.utime(tmp_path / name / "config.yaml", (0, {"b": 1, "a": 2, "c": 3}[name]))
    assert latest_run(tmp_path, "mine") == tmp_path / "a" and latest_run(tmp_path, "other") == tmp_path / "c"
    with pytest.raises(InputError, match=r"no run of table tiny; the latest is of other: .* --resume --run-dir .*/c$"):
        latest_run(tmp_path, "tiny")
    (tmp_path / "a" / "config.yaml").write_text("table: [")
    assert latest_run(tmp_path, "mine") == tmp_path / "b", "a broken one is passed over"


@pytest.mark.parametrize("text", ["", "- 1", "seed: [", "seed: 0", "\x00"])
def test_broken_settings_are_one_line(text: str, begun: Path):
    (begun / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml: ") as error:
        config_of(begun)
    assert "\n" not in str(error.value)
