"""The main program: what it writes, how it stops, goes on and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from agents.training.checkpoint import latest_checkpoint
from agents.training.config import TrainConfig
from leeroo_env import ExpertTable
from tests.conftest import random_table

ROOT = Path(__file__).parents[1]
SHORT = ["--policy", "mlp", "--timesteps", "40000", "--n-envs", "64", "--threads", "1"]


def start(*arguments: str, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def finished(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    process = start(*SHORT, "--table", str(synthetic), "--run-dir", str(run_dir), cwd=run_dir.parent)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "agent" in out and "synthetic" in out and "step/s" in err and "score=" in err
    return run_dir


def test_writes_what_it_promises(finished: Path):
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["table"] == "synthetic" and evaluation["split"] == "test" and evaluation["seed"] == 0
    assert evaluation["experts"] == ["small", "coder", "large"] and evaluation["horizon"] == 64
    assert len(evaluation["budgets_usd"]) == 6
    routers = list(evaluation["routers"])
    assert routers[:5] == ["agent", "random", "cheapest", "best single", "best mixture"]
    assert routers[-2:] == ["hindsight", "hindsight on estimates"]
    for estimate in ("domain means", "kNN", "kernel ridge", "MLP", "LinUCB"):
        assert {f"paced {estimate}", f"fixed price {estimate}", f"planned {estimate}"} < set(routers)
    assert set(evaluation["metrics"]) == set(routers[:-2])
    for router in evaluation["routers"].values():
        for key in ("score", "cost_usd", "stderr"):
            assert len(router[key]) == 6 and np.isfinite(router[key]).all()
    report = (finished / "report.md").read_text()
    for text in ("synthetic", "| agent |", "| best mixture |", "| large |", f"{evaluation['budgets_usd'][3]:.3g}"):
        assert text in report
    for text in ("of its cost", "| prediction regret |", "| allocation regret |", "AIQ", "APGR", "By domain"):
        assert text in report
    assert (finished / "curve.png").read_bytes().startswith(b"\x89PNG")
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["timesteps"] == 40_000 and config["made_with"]["torch"] == torch.__version__
    assert not list(finished.rglob("*.tmp"))


def test_tensorboard_shows_learning_and_choices(finished: Path):
    assert len(list(finished.glob("events.*"))) == 1
    events = EventAccumulator(str(finished), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    budgets = json.loads((finished / "evaluation.json").read_text())["budgets_usd"]
    expected = {f"held_out/{what}_at_usd_{b:.3g}" for what in ("score", "spend") for b in budgets}
    expected |= {f"share_of_calls/{name}" for name in ("small", "coder", "large")}
    expected |= {f"episode/{n}" for n in ("return", "score_per_query", "spend_usd_per_query")}
    expected |= {"episode/budget_left_share", "episode/refused_calls", "train/entropy", "time/steps_per_s"}
    expected |= {"held_out/score", "train/value_loss", "train/policy_gradient_loss"}
    assert expected <= tags, expected - tags
    assert "held_out/score_over_spend" in events.Tags()["images"]
    shares = [[e.value for e in events.Scalars(f"share_of_calls/{n}")] for n in ("small", "coder", "large")]
    assert np.sum(shares, axis=0) == pytest.approx(np.ones(len(shares[0])), abs=1e-5)
    score = [e.value for e in events.Scalars("held_out/score")]
    assert max(score[1:]) > score[0] + 0.05, "the held-out score rises"
    steps = [e.step for e in events.Scalars("time/steps_per_s")]
    assert steps == sorted(set(steps))


def same_outcome(one: Path, other: Path) -> None:
    for name in ("policy/policy.safetensors",):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first), name
    first, second = (latest_checkpoint(run / "checkpoints") for run in (one, other))
    assert first is not None and second is not None
    assert first.name == second.name
    weights = [load_file(path / "state.safetensors") for path in (first, second)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert (one / "evaluation.json").read_bytes() == (other / "evaluation.json").read_bytes()


def test_same_seed_same_bits(finished: Path, synthetic: Path, tmp_path: Path):
    assert (
        train.run(
            TrainConfig(
                str(synthetic), policy="mlp", timesteps=40_000, n_envs=64, threads=1, run_dir=str(tmp_path / "again")
            )
        )
        == 0
    )
    same_outcome(finished, tmp_path / "again")


def test_several_seeds_are_as_many_runs_and_their_mean(synthetic: Path, tmp_path: Path):
    """Every agent is the one that its seed alone would train; one that is there already is not trained again."""
    options = {"timesteps": 20_000, "n_envs": 64, "threads": 1}
    together = TrainConfig(str(synthetic), seed=3, seeds=2, run_dir=str(tmp_path / "both"), **options)  # type: ignore
    assert train.run(together) == 0
    assert train.run(TrainConfig(str(synthetic), seed=4, run_dir=str(tmp_path / "one"), **options)) == 0  # type: ignore
    first, second = (
        load_file(run / "policy/policy.safetensors") for run in (tmp_path / "one", tmp_path / "both/seed-4")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    scores = [json.loads((tmp_path / f"both/seed-{s}/evaluation.json").read_text())["routers"] for s in (3, 4)]
    told = json.loads((tmp_path / "both/seeds.json").read_text())
    assert told["seeds"] == [3, 4] and told["scores"]["agent"] == [one["agent"]["score"] for one in scores]
    mean = np.mean(told["scores"]["agent"])
    assert f"| agent | {mean:.4f} ±" in (tmp_path / "both/report.md").read_text()
    kept = (tmp_path / "both/seed-3/report.md").stat().st_mtime_ns
    (tmp_path / "both/seed-4/report.md").unlink()
    assert train.main(["--resume", "--run-dir", str(tmp_path / "both")]) == 0
    assert (tmp_path / "both/seed-3/report.md").stat().st_mtime_ns == kept
    assert (tmp_path / "both/seed-4/report.md").exists()


@pytest.mark.parametrize(("kill", "after"), [(signal.SIGKILL, 1), (signal.SIGKILL, 3), (signal.SIGINT, 1)])
def test_a_stopped_run_goes_on_to_the_same_bits(
    kill: signal.Signals, after: int, finished: Path, synthetic: Path, tmp_path: Path
):
    """Stopped `after` so many checkpoints, wherever it is then: in an update, an evaluation, or writing the next."""
    run_dir = tmp_path / "run"
    process = start(*SHORT, "--table", str(synthetic), "--run-dir", str(run_dir), cwd=tmp_path)
    seen: set[str] = set()
    while process.poll() is None and len(seen) < after:
        seen |= {path.name for path in run_dir.glob("checkpoints/step-*")}
        time.sleep(0.005)
    process.send_signal(kill)
    out, err = process.communicate()
    assert process.returncode == (130 if kill == signal.SIGINT else -signal.SIGKILL), out + err
    assert not (run_dir / "report.md").exists(), "the run must have been stopped in the middle"
    if kill == signal.SIGINT:
        assert "Traceback" not in err and f"go on with: python train.py --resume --run-dir {run_dir}" in out
    process = start("--resume", "--run-dir", str(run_dir), cwd=tmp_path)
    _, err = process.communicate()
    assert process.returncode == 0, err
    same_outcome(finished, run_dir)
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    steps = [e.step for e in events.Scalars("held_out/score")]
    assert steps == sorted(set(steps)), "nothing is shown twice"


def test_the_bid_price_policy_goes_on_to_the_same_bits(synthetic: Path, tmp_path: Path):
    """Killed while only its value learns, so that the actor has no optimiser state yet."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ("--table", str(synthetic), "--timesteps", "40000", "--n-envs", "64")
    uninterrupted = start(*options, "--run-dir", str(whole), cwd=tmp_path)
    uninterrupted.communicate()
    assert uninterrupted.returncode == 0
    process = start(*options, "--run-dir", str(killed), cwd=tmp_path)
    while process.poll() is None and not list(killed.glob("checkpoints/step-*")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (killed / "report.md").exists(), "the run must have been stopped in the middle"
    assert train.main(["--resume", "--run-dir", str(killed)]) == 0
    same_outcome(whole, killed)


def test_off_policy_runs_go_on_too(synthetic: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    process = start(
        *("--table", str(synthetic), "--algo", "dqn", "--timesteps", "20000", "--run-dir", str(run_dir)), cwd=tmp_path
    )
    while process.poll() is None and not list(run_dir.glob("checkpoints/step-*")):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    process = start("--resume", "--run-dir", str(run_dir), cwd=tmp_path)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert (run_dir / "evaluation.json").exists()


def test_a_run_stopped_before_its_first_checkpoint_begins_again(finished: Path, synthetic: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    process = start(*SHORT, "--table", str(synthetic), "--run-dir", str(run_dir), cwd=tmp_path)
    while process.poll() is None and not (run_dir / "config.yaml").exists():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not list(run_dir.glob("checkpoints/step-*"))
    assert train.main(["--resume", "--run-dir", str(run_dir)]) == 0
    same_outcome(finished, run_dir)


def test_resuming_takes_no_other_settings(finished: Path, capfd: pytest.CaptureFixture):
    assert train.main(["--resume", "--seed", "5", "--run-dir", str(finished)]) == 2
    assert "began with seed 0 and goes on with it, not 5" in capfd.readouterr().err


def test_names_may_hold_anything(tmp_path: Path):
    table = random_table(n=200)
    renamed = ["$\\frac$", "a|b", "x/y,z", "日本"]
    ExpertTable.from_arrays(
        "cheap $_$ table", renamed, table.embeddings.numpy(), table.scores.numpy(), table.costs_usd.numpy()
    ).save(tmp_path / "table")
    run_dir = tmp_path / "run"
    config = TrainConfig(str(tmp_path / "table"), timesteps=512, horizon=4, n_envs=8, run_dir=str(run_dir))
    assert train.run(config) == 0
    assert "| a\\|b |" in (run_dir / "report.md").read_text()


def test_resuming_a_finished_run_only_evaluates_again(finished: Path):
    before = (finished / "evaluation.json").read_bytes()
    assert train.main(["--resume", "--run-dir", str(finished)]) == 0
    assert (finished / "evaluation.json").read_bytes() == before


def test_a_checkpoint_of_another_table_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture):
    table, run_dir = tmp_path / "table", tmp_path / "run"
    random_table(n=300).save(table)
    assert train.run(TrainConfig(table=str(table), timesteps=5_000, horizon=8, n_envs=16, run_dir=str(run_dir))) == 0
    random_table(n=300, seed=1).save(table)
    assert train.main(["--resume", "--run-dir", str(run_dir)]) == 2
    assert "its checkpoint is of another table" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "nowhere"], "error: nowhere: no such table directory, and the built-in tables are "),
        (["--experts", "small,larg"], "table.json: no expert named 'larg'; did you mean 'large'?"),
        (["--budget", "1e-15"], "error: budget 1e-15 dollars a query: below every expert's mean cost; nano is"),
        (["--budget", "1", "2", "3"], "error: budget (1.0, 2.0, 3.0): give one number or two"),
        (["--horizon", "99999"], "error: horizon 99999: must be 1 to "),
        (["--run-dir", "file/run"], "error: file/run: cannot be written: Not a directory"),
        (["--run-dir", "taken"], "error: taken: holds a run already"),
        (["--resume", "--run-dir", "empty"], "error: empty/config.yaml: cannot be read"),
        (["--resume"], "error: runs/: holds no run to resume"),
        (["--timesteps", "0"], "error: timesteps 0"),
        (["--seed", "-1"], "error: seed -1: must be 0 to"),
        (["--budget", "inf"], "error: budget inf: must be finite and above 0"),
        (["--algo", "dqn", "--policy", "bid-price"], "error: policy bid-price: dqn cannot train it"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("taken").mkdir()
    Path("taken/config.yaml").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert train.main(arguments) == 2
    out, err = capfd.readouterr()
    assert err.startswith("error: ") and message in err and err.count("\n") == 1 and not out, err
    assert sorted(tmp_path.rglob("*")) == before, "nothing may be written"


def test_the_exit_code_reaches_the_shell(tmp_path: Path):
    process = start("--table", "nowhere", cwd=tmp_path)
    out, err = process.communicate()
    assert process.returncode == 2 and err.startswith("error: nowhere") and err.count("\n") == 1 and not out


def test_every_option_is_explained(tmp_path: Path):
    process = start("--help", cwd=tmp_path)
    out, _ = process.communicate()
    for option in ("table", "experts", "algo", "timesteps", "n-envs", "horizon", "budget", "cost-weight", "seed"):
        assert f"--{option} " in out
    for option in ("--device", "--run-dir", "--resume", "maskable_ppo", "qrdqn", "trpo"):
        assert option in out
