"""A run directory is begun once, found again, and resumed only with the settings that it was begun with."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
import yaml

import train
from agents import verify
from agents.training.config import TrainConfig
from agents.training.run_dir import (
    REPORT,
    begin_run,
    check_unchanged,
    config_of,
    find_run,
    finish_run,
    how_to_continue,
    is_finished,
    latest_run,
)
from leeroo_env import InputError
from leeroo_env.atomic import locked
from leeroo_env.manifest import write_manifest
from tests.flipping import flipped


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
    [["--table", "tiny"], ["--seed", "5"], ["--budget", "1e-5", "2e-5"], ["--max-calls", "auto"], ["--algo", "ppo"]],
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
        (["--max-calls", "4"], "began with max_calls 'auto'"),
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


def test_a_run_that_another_process_works_on_is_refused(begun: Path, capfd: pytest.CaptureFixture):
    ready, child = os.pipe(), os.fork()
    if child == 0:
        with locked(begun):
            os.write(ready[1], b"x")
            signal.pause()
    os.read(ready[0], 1)
    try:
        assert train.main(["--resume", "--run-dir", str(begun)]) == 2
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert capfd.readouterr().err == f"error: {begun}: another process is working on it\n"


def test_bare_resume_takes_a_run_of_the_same_table(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    """The option --table decides which that is, given or by default; a run of another table is named, not taken."""
    monkeypatch.chdir(tmp_path)
    for name, table in (("first", "mine"), ("second", "other")):
        config = TrainConfig(table=table, run_dir=f"runs/{name}")
        begin_run(tmp_path / "runs" / name, config.as_settings(tmp_path / "runs" / name))
    assert find_run(TrainConfig(table="mine")) == Path("runs/first")
    assert find_run(TrainConfig(table=str(tmp_path / "other"))) == Path("runs/second")
    assert find_run(TrainConfig(table="other", run_dir="elsewhere")) == Path("elsewhere")
    assert train.main(["--resume"]) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: runs/: holds no run of table tiny; the latest is of ") and told.count("\n") == 1
    assert "go on with it by --resume --run-dir runs/" in told


def test_a_flipped_bit_of_the_settings_is_refused(begun: Path, capfd: pytest.CaptureFixture):
    before, rng = (begun / "config.yaml").read_bytes(), random.Random(0)
    for _ in range(30):
        (begun / "config.yaml").write_bytes(flipped(before, rng))
        assert train.main(["--resume", "--run-dir", str(begun)]) == 2
        told = capfd.readouterr().err
        assert told.startswith(f"error: {begun}/config.yaml: damaged, or changed by hand") and told.count("\n") == 1


def test_settings_changed_by_hand_are_taken_after_renewal(begun: Path):
    text = (begun / "config.yaml").read_text()
    (begun / "config.yaml").write_text(text.replace("timesteps: 500000", "timesteps: 600000"))
    with pytest.raises(InputError, match=r"leeroo verify --renew"):
        config_of(begun)
    assert verify.main(["--renew", str(begun)]) == 0
    assert config_of(begun).timesteps == 600_000


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", "five"), ("seed", [1]), ("algo", "os.system"), ("budget", 3), ("budget", ["x"]), ("horizon", None)],
)
def test_settings_of_another_type_are_one_line(field: str, value: object, begun: Path):
    settings = yaml.safe_load((begun / "config.yaml").read_text())
    (begun / "config.yaml").write_text(yaml.safe_dump({**settings, field: value}))
    write_manifest(begun, ["config.yaml"])
    with pytest.raises(InputError, match=rf"config\.yaml: not the settings of a run: {field}") as error:
        config_of(begun)
    assert "\n" not in str(error.value)


def test_a_run_is_finished_when_its_report_is_there_as_it_was_written(begun: Path):
    assert not is_finished(begun)
    for name in REPORT:
        (begun / name).write_text("{}")
    assert not is_finished(begun), "killed before it was done"
    finish_run(begun)
    assert is_finished(begun)
    (begun / "evaluation.json").write_text("[]")
    assert not is_finished(begun), "another evaluation than was written"
    finish_run(begun)
    (begun / "report.md").unlink()
    assert not is_finished(begun)
    (begun / "report.md").write_text("")
    (begun / "manifest.json").unlink()
    assert is_finished(begun), "a run of an earlier version"


def test_what_an_interruption_leaves(begun: Path, tmp_path: Path):
    assert how_to_continue(tmp_path / "never", new=True) == "nothing was written"
    (begun / "notes.txt").write_text("mine")
    files = ("policy/policy.json", "events.out.1", "checkpoints/.step-1.tmp/state.json")
    for name in (*files, *(f"one-call/{name}" for name in files), *(f"seed-3/one-call/{name}" for name in files)):
        (begun / name).parent.mkdir(parents=True, exist_ok=True)
        (begun / name).write_text("")
    assert "--resume --run-dir" in how_to_continue(begun, new=False) and (begun / "config.yaml").exists()
    assert "no checkpoint yet" in how_to_continue(begun, new=True)
    assert [path.name for path in begun.iterdir()] == ["notes.txt"]
    begin_run(begun, {})
    (begun / "seed-3" / "checkpoints" / "step-1").mkdir(parents=True)
    assert how_to_continue(begun, new=True).endswith(f"leeroo train --resume --run-dir {begun}")


@pytest.mark.parametrize("text", ["", "- 1", "seed: [", "seed: 0", "\x00"])
def test_broken_settings_are_one_line(text: str, begun: Path):
    (begun / "config.yaml").write_text(text)
    write_manifest(begun, ["config.yaml"])
    with pytest.raises(InputError, match=r"config\.yaml: ") as error:
        config_of(begun)
    assert "\n" not in str(error.value)
