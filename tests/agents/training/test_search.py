"""The search for hyperparameters, and seeds on a cluster: val decides, and a cluster changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from experts.cluster.session import ray_session

ROOT = Path(__file__).parents[3]
SHORT = ("--timesteps", "4096", "--n-envs", "32", "--horizon", "16", "--max-calls", "1")


@pytest.fixture(scope="module")
def ray(ray_nodes: Any) -> Iterator[Any]:
    """The cluster of all tests, connected to: a process that has left it for one of its own cannot come back."""
    pytest.importorskip("optuna", reason="needs Optuna: pip install -e '.[ray]'")
    with ray_session("--tune", ray_nodes.address) as ray:
        yield ray


def begin(table: Path, run_dir: Path, *options: str) -> list[str]:
    return ["--table", str(table), "--run-dir", str(run_dir), *SHORT, *options]


def test_the_best_on_val_is_trained_and_told(
    ray: Any, small_synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run_dir = tmp_path / "run"
    assert train.main(begin(small_synthetic, run_dir, "--tune", "2")) == 0
    told = capsys.readouterr()
    assert all(f"trial {number}: val score" in told.out + told.err for number in range(2))
    trials = json.loads((run_dir / "search.json").read_text())["trials"]
    assert len(trials) == 2 and trials[0]["settings"]["learning_rate"] == 1e-3, "the defaults come first"
    best = max(trials, key=lambda trial: max(trial["scores"]))
    settings = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert settings["tuned"] == best["settings"]
    made = {name: settings["hyperparameters"][name] for name in best["settings"]}
    assert made == best["settings"] | {"batch_size": min(best["settings"]["batch_size"], 32 * 64)}  # a whole rollout
    report = (run_dir / "report.md").read_text()
    assert "## The search for hyperparameters" in report and "2 trials; best on val" in report
    curves = [EventAccumulator(str(path)).Reload().Tags()["scalars"] for path in sorted((run_dir / "search").iterdir())]
    assert len(curves) == 2 and all("val/score" in tags for tags in curves)
    assert train.main(["--resume", "--run-dir", str(run_dir)]) == 0, "which needs no search"


def test_seeds_on_a_cluster_are_the_same(
    ray: Any, small_synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    assert train.main(begin(small_synthetic, alone, "--seeds", "2")) == 0
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    assert train.main(begin(small_synthetic, spread, "--seeds", "2")) == 0
    assert (spread / "seeds.json").read_bytes() == (alone / "seeds.json").read_bytes()
    for seed in (0, 1):
        one, other = (path / f"seed-{seed}" / "evaluation.json" for path in (alone, spread))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tune", "1"), "tune 1: must be 2 to 10000 trials"),
        (("--tune", "4", "--agent", "random"), "is not trained, so that there is nothing to vary by --tune 4"),
    ],
)
def test_bad_searches_are_one_line(
    small_synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
):
    assert train.main(begin(small_synthetic, tmp_path / "run", *options)) == 2
    told = capsys.readouterr().err
    assert words in told and len(told.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_without_ray_it_says_what_to_install(small_synthetic: Path, tmp_path: Path):
    code = "import sys; sys.modules['ray'] = None; import train; sys.exit(train.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *begin(small_synthetic, tmp_path / "run", "--tune", "2")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2 and "pip install -e '.[ray]'" in ended.stderr and not (tmp_path / "run").exists()
