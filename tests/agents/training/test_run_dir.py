"""A run directory is begun once, found again, and resumed only with the settings that it was begun with."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_a_run_is_never_overwritten(begun: Path):
    before = (begun / "config.yaml").read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        begin_run(begun, {})
    assert (begun / "config.yaml").read_bytes() == before


def test_the_latest_run_is_the_one_begun_last(tmp_path: Path):
    with pytest.raises(InputError, match="holds no run to resume"):
        latest_run(tmp_path)
    for name in ("b", "a"):
        begin_run(tmp_path / name, {})
    assert latest_run(tmp_path) == tmp_path / "a"


@pytest.mark.parametrize("text", ["", "- 1", "seed: [", "seed: 0", "\x00"])
def test_broken_settings_are_one_line(text: str, begun: Path):
    (begun / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml: ") as error:
        config_of(begun)
    assert "\n" not in str(error.value)
