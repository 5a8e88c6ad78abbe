"""The main program: what it writes, how it stops, goes on and refuses."""

from __future__ import annotations

import itertools
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from agents.training.callbacks import Monitor
from agents.training.checkpoint import latest_checkpoint
from agents.training.config import TrainConfig
from leeroo_env import ExpertTable
from tests.conftest import random_table

ROOT = Path(__file__).parents[1]
SHORT = ("--policy", "mlp", "--timesteps", "20000", "--n-envs", "64", "--horizon", "16")  # five checkpoints
CHECKPOINTS = "agents.training.callbacks.save_checkpoint"


class Killed(BaseException):
    """Ends a run within this process where a signal would end it."""


def start(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python with `command`, to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


def begin(table: Path, run_dir: Path, *options: str) -> list[str]:
    return ["--table", str(table), "--run-dir", str(run_dir), *options]


def resume(run_dir: Path) -> list[str]:
    return ["--resume", "--run-dir", str(run_dir)]


def killed_at(function: str, times: int, arguments: list[str], after: bool = False) -> None:
    """Runs `train.py` and kills it where `function` is called for the n-th time: before it does its work, or after."""
    module, name = function.rsplit(".", 1)
    owner = pkgutil.resolve_name(module)
    original, calls = getattr(owner, name), itertools.count(1)

    def last(*args: Any, **kwargs: Any) -> Any:
        dies = next(calls) == times
        if dies and not after:
            raise Killed
        result = original(*args, **kwargs)
        if dies:
            raise Killed
        return result

    with patch.object(owner, name, last), pytest.raises(Killed):
        train.main(arguments)


def steps(run_dir: Path) -> list[int]:
    """Steps at which there are checkpoints, whole ones."""
    return sorted(int(path.name.removeprefix("step-")) for path in run_dir.glob("checkpoints/step-*"))


def check_log(stderr: str) -> None:
    """Without a terminal, progress is whole lines: every piece of work begins, ends, and overwrites nothing."""
    lines = stderr.splitlines()
    assert "\r" not in stderr and "\x1b" not in stderr and all(lines)
    for work in ("estimates and routers", "other routers on val", "training", "evaluating on test"):
        shown = [line for line in lines if line.startswith(f"{work}: ")]
        assert shown[0] == f"{work}: begins" and shown[-1].startswith(f"{work}: 100 %"), shown
        assert len(shown) == len(set(shown))
    assert "score=" in next(line for line in lines if line.startswith("training: 100 %"))


@pytest.fixture(scope="module")
def finished(small_synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    ended = start(str(ROOT / "train.py"), *begin(small_synthetic, run_dir, *SHORT), cwd=run_dir.parent)
    assert ended.returncode == 0, ended.stderr
    assert "agent" in ended.stdout and "synthetic" in ended.stdout
    check_log(ended.stderr)
    return run_dir


def test_writes_what_it_promises(finished: Path):
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["table"] == "synthetic" and evaluation["split"] == "test" and evaluation["seed"] == 0
    assert evaluation["experts"] == ["small", "coder", "large"] and evaluation["horizon"] == 16
    assert len(evaluation["budgets_usd"]) == 6
    routers = list(evaluation["routers"])
    assert routers[:6] == ["agent", "agent before PPO", "random", "cheapest", "best single", "best mixture"]
    gain = evaluation["decision"]["training"]["gain"]["mean"]
    own, before = (np.mean(evaluation["routers"][name]["score"]) for name in ("agent", "agent before PPO"))
    assert own - before == pytest.approx(gain, abs=1e-9) and gain > 0.05
    assert routers[-2:] == ["hindsight", "hindsight on estimates"]
    for estimate in ("domain means", "kNN", "kernel ridge", "MLP", "LinUCB"):
        assert {f"paced {estimate}", f"fixed price {estimate}", f"planned {estimate}"} < set(routers)
    assert set(evaluation["metrics"]) == set(routers[:-2]) == set(evaluation["all_budgets"]["routers"])
    assert evaluation["decision"]["rows"][0]["name"] == evaluation["decision"]["deploy"]
    assert evaluation["decision"]["training"]["steps"] >= 20_000
    for router in evaluation["routers"].values():
        for key in ("score", "cost_usd", "stderr"):
            assert len(router[key]) == 6 and np.isfinite(router[key]).all()
    report = (finished / "report.md").read_text()
    for text in (
        "synthetic",
        "| agent |",
        "| best mixture |",
        "| large |",
        f"{1000 * evaluation['budgets_usd'][3]:.3g}",
    ):
        assert text in report
    assert report.splitlines()[2].startswith("**Deploy ") and "PPO added " in report.split("# Appendix")[0]
    for text in ("of its cost", "| prediction regret |", "| allocation regret |", "AIQ", "APGR", "by domain"):
        assert text in report
    assert (finished / "curve.png").read_bytes().startswith(b"\x89PNG")
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["timesteps"] == 20_000 and config["made_with"]["torch"] == torch.__version__
    assert not list(finished.rglob("*.tmp"))


def test_tensorboard_shows_learning_and_choices(finished: Path):
    assert len(list(finished.glob("events.*"))) == 1
    events = EventAccumulator(str(finished), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    names = ("small", "coder", "large")
    expected = {f"val/{what}/budget_{b}" for what in ("score", "spend_share") for b in range(1, 7)}
    expected |= {f"choices/budget_{b}/{name}" for b in range(1, 7) for name in names}
    expected |= {f"share_of_calls/{name}" for name in names}
    expected |= {f"episode/{n}" for n in ("return", "score_per_query", "spend_usd_per_query")}
    expected |= {"episode/budget_left_share", "episode/cut_off_calls", "train/entropy", "time/steps_per_s"}
    expected |= {"eval/gain_over_start", *(f"eval/gain_over_start/budget_{b}" for b in range(1, 7))}
    expected |= {"val/score", "val/kept_score", "val/lead_over_start", "val/lead_over_best_router"}
    expected |= {"test/score", "test/lead_over_start", "test/lead_over_best_router"}
    expected |= {"train/value_loss", "train/policy_gradient_loss"}
    assert expected <= tags, expected - tags
    assert "train/entropy_loss" not in tags, "it would be train/entropy twice"
    assert "val/score_over_dollars" in events.Tags()["images"]
    for prefix in ("share_of_calls", *(f"choices/budget_{b}" for b in range(1, 7))):
        shares = [[e.value for e in events.Scalars(f"{prefix}/{n}")] for n in names]
        assert np.sum(shares, axis=0) == pytest.approx(np.ones(len(shares[0])), abs=1e-5)
    score, lead = ([e.value for e in events.Scalars(tag)] for tag in ("val/score", "val/lead_over_start"))
    assert max(score[1:]) > score[0] + 0.05, "the score on val rises"
    assert lead == pytest.approx([one - score[0] for one in score], abs=1e-6)
    assert [e.value for e in events.Scalars("eval/gain_over_start")] == lead
    evaluation = json.loads((finished / "evaluation.json").read_text())
    (test,) = events.Scalars("test/score")
    assert test.value == pytest.approx(np.mean(evaluation["routers"]["agent"]["score"]))


def test_tensorboard_says_what_its_tags_mean(finished: Path):
    events = EventAccumulator(str(finished), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    for tag in events.Tags()["scalars"]:
        if not tag.startswith(("train/", "rollout/")):
            assert events.SummaryMetadata(tag).summary_description, tag
    tags = [tag for tag in events.Tags()["tensors"] if tag.endswith("/text_summary")]
    texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in tags}
    about, decision = texts["about/text_summary"], texts["decision/text_summary"]
    assert "**val/lead_over_start** rises above 0" in about and "| timesteps | 20000 |" in about
    assert "| budget_6 | $" in about and "| choices/budget_… |" in about
    assert decision.startswith("**Deploy ")
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")


def test_tensorboard_shows_steps_in_order(finished: Path):
    events = EventAccumulator(str(finished), size_guidance={"scalars": 0})
    events.Reload()
    steps = [e.step for e in events.Scalars("time/steps_per_s")]
    assert steps == sorted(set(steps))


def last_checkpoint(run_dir: Path) -> Path:
    path = latest_checkpoint(run_dir / "checkpoints")
    assert path is not None
    return path


def same_training(one: Path, other: Path) -> None:
    """The last checkpoint's tensors and the policy that was kept are the same to the bit."""
    assert last_checkpoint(one).name == last_checkpoint(other).name
    for name in (last_checkpoint(one).relative_to(one) / "state.safetensors", "policy/policy.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first), name


def same_outcome(one: Path, other: Path) -> None:
    same_training(one, other)
    assert (one / "evaluation.json").read_bytes() == (other / "evaluation.json").read_bytes()


def test_same_seed_same_bits(finished: Path, small_synthetic: Path, tmp_path: Path):
    assert train.main(begin(small_synthetic, tmp_path / "again", *SHORT)) == 0
    same_outcome(finished, tmp_path / "again")


def test_a_run_killed_anywhere_goes_on_to_the_same_bits(finished: Path, small_synthetic: Path, tmp_path: Path):
    """One run, killed again and again: before its first step, in a rollout, in an update, between keeping a policy and
    the checkpoint, half-way through writing one, and by the system right after one."""
    run_dir = tmp_path / "run"
    killed_at("agents.training.callbacks.Monitor._on_training_start", 1, begin(small_synthetic, run_dir, *SHORT))
    assert (run_dir / "config.yaml").exists() and not steps(run_dir), "it begins again"
    killed_at("agents.training.callbacks.Monitor._on_step", 100, resume(run_dir))
    assert steps(run_dir) == [4096]
    killed_at("agents.ppo.ppo.DevicePPO.train", 2, resume(run_dir))
    assert steps(run_dir) == [4096, 8192]
    killed_at(CHECKPOINTS, 1, resume(run_dir))
    assert steps(run_dir) == [4096, 8192] and json.loads((run_dir / "policy/policy.json").read_text())["step"] == 12_288
    killed_at("agents.training.checkpoint.write_json", 1, resume(run_dir))
    assert steps(run_dir) == [4096, 8192] and not list(run_dir.glob("checkpoints/.*")), "nothing is left of it"
    (run_dir / "checkpoints/.step-000000012288.1.tmp").mkdir()  # what a kill at that point would leave
    ended = start("-m", "tests.killed_run", "1", *resume(run_dir), cwd=tmp_path)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert steps(run_dir) == [8192, 12_288] and not (run_dir / "report.md").exists()
    assert train.main(resume(run_dir)) == 0
    same_outcome(finished, run_dir)
    assert not list(run_dir.rglob("*.tmp"))
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    shown = [e.step for e in events.Scalars("val/score")]
    assert shown == sorted(set(shown)), "nothing is shown twice"


def test_an_interrupted_run_says_how_to_go_on(
    finished: Path, small_synthetic: Path, tmp_path: Path, capfd: pytest.CaptureFixture
):
    run_dir = tmp_path / "run"
    calls, on_step = itertools.count(1), Monitor._on_step

    def interrupt(monitor: Monitor) -> bool:
        if next(calls) == 100:
            os.kill(os.getpid(), signal.SIGINT)
        return on_step(monitor)

    handler = signal.getsignal(signal.SIGINT)
    with patch.object(Monitor, "_on_step", interrupt):
        assert train.main(begin(small_synthetic, run_dir, *SHORT)) == 130
    out, err = capfd.readouterr()
    assert "Traceback" not in err and f"go on with: python train.py --resume --run-dir {run_dir}" in out
    assert signal.getsignal(signal.SIGINT) is handler and not (run_dir / "report.md").exists()
    assert train.main(resume(run_dir)) == 0
    same_outcome(finished, run_dir)


def test_an_iteration_that_takes_longer_than_the_user_waits_is_given_up(
    small_synthetic: Path, tmp_path: Path, capfd: pytest.CaptureFixture
):
    """Before the first checkpoint nothing is kept, and the same command works again."""
    run_dir = tmp_path / "run"

    def interrupt(monitor: Monitor) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
        return True

    began = time.monotonic()
    with patch.object(Monitor, "_on_step", interrupt), patch("agents.training.callbacks.PATIENCE_S", 0.1):
        assert train.main(begin(small_synthetic, run_dir, *SHORT)) == 130
    assert time.monotonic() - began < 20
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("interrupted")]
    assert told == ["interrupted; nothing is kept: there was no checkpoint yet"] and not run_dir.exists()


@pytest.mark.parametrize("program", [["train.py"], ["-c", "from agents.cli import main; main()", "train"]])
@pytest.mark.parametrize("wait_s", [0.5, 5])
def test_ctrl_c_before_anything_is_written_is_one_line(program: list[str], wait_s: float, tmp_path: Path):
    """While it imports, and some seconds later, while it reads and fits."""
    command = [sys.executable, *[str(ROOT / part) if part == "train.py" else part for part in program]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    time.sleep(wait_s)
    started.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert "\ninterrupted; nothing was written\n" in "\n" + started.communicate()[1]
    assert started.returncode == 130 and time.monotonic() - began < 5 and not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(small_synthetic: Path, tmp_path: Path, capfd: pytest.CaptureFixture):
    """Here it is a limit on the size of a file that is reached by the first checkpoint."""
    run_dir = tmp_path / "run"
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        os._exit(train.main(begin(small_synthetic, run_dir, *SHORT)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    told = capfd.readouterr().err
    assert "Traceback" not in told and not list(tmp_path.rglob("*.tmp"))
    line = next(line for line in told.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: {run_dir}: cannot be written: File too large; nothing is kept")


def test_several_seeds_are_as_many_runs_and_their_mean(small_synthetic: Path, tmp_path: Path):
    """Every agent is the one that its seed alone would train; one that is there already is not trained again.

    With the bid-price policy, and a kill while only the second agent's value learns, so that its actor has no optimiser
    state yet.
    """
    both, one = tmp_path / "both", tmp_path / "one"
    options = ("--timesteps", "12000", "--n-envs", "32", "--horizon", "16")  # six checkpoints
    command = begin(small_synthetic, both, *options, "--seed", "3", "--seeds", "2")
    ended = start("-m", "tests.killed_run", "7", *command, cwd=tmp_path)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert steps(both / "seed-4") == [2048] and not (both / "report.md").exists()
    killed = optimizer_state(both / "seed-4")
    kept = (both / "seed-3/report.md").stat().st_mtime_ns
    assert train.main(resume(both)) == 0
    assert (both / "seed-3/report.md").stat().st_mtime_ns == kept
    assert killed < optimizer_state(both / "seed-4")

    summary, damaged = (both / "seeds.json").read_bytes(), both / "seed-3" / "evaluation.json"
    (both / "seed-4" / "evaluation.json").unlink()  # as where it was killed after it had written report.md
    damaged.write_bytes(damaged.read_bytes().replace(b"1", b"2", 1))
    assert train.main(resume(both)) == 0
    assert (both / "seeds.json").read_bytes() == summary, "both are made again"

    assert train.main(begin(small_synthetic, one, *options, "--seed", "4")) == 0
    same_training(one, both / "seed-4")
    scores = [json.loads((both / f"seed-{s}/evaluation.json").read_text())["routers"] for s in (3, 4)]
    means = json.loads((both / "seeds.json").read_text())
    assert means["seeds"] == [3, 4] and means["scores"]["agent"] == [each["agent"]["score"] for each in scores]
    assert scores[1]["agent"] == json.loads((one / "evaluation.json").read_text())["routers"]["agent"]
    mean = np.mean(means["scores"]["agent"])
    report = (both / "report.md").read_text()
    assert f"| agent | {mean:.4f} ±" in report and report.splitlines()[2].startswith("**Deploy ")
    assert "points to its start, mean over seeds and budgets" in report


def optimizer_state(run_dir: Path) -> set[str]:
    """Names of the tensors of the optimiser in the last checkpoint."""
    return {name for name in load_file(last_checkpoint(run_dir) / "state.safetensors") if name.startswith("optimizer.")}


def test_off_policy_runs_go_on_too(small_synthetic: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    options = ("--algo", "dqn", "--timesteps", "8000", "--n-envs", "8", "--horizon", "16")
    killed_at(CHECKPOINTS, 7, begin(small_synthetic, run_dir, *options), after=True)
    assert steps(run_dir)[-1] > 5_000, "it has begun to learn"
    assert train.main(resume(run_dir)) == 0
    assert steps(run_dir)[-1] == 8_000 and (run_dir / "evaluation.json").exists()


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
    ended = start(str(ROOT / "train.py"), "--table", "nowhere", cwd=tmp_path)
    assert ended.returncode == 2 and not ended.stdout
    assert ended.stderr.startswith("error: nowhere") and ended.stderr.count("\n") == 1


def test_every_option_is_explained(capfd: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])
    assert ended.value.code == 0
    out = capfd.readouterr().out
    for option in ("table", "experts", "algo", "timesteps", "n-envs", "horizon", "budget", "cost-weight", "seed"):
        assert f"--{option} " in out
    for option in ("--device", "--run-dir", "--resume", "maskable_ppo", "qrdqn", "trpo"):
        assert option in out
