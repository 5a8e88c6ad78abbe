"""With `--max-calls auto` an agent of one call is trained, and one of several where its plan gains enough; train and
val decide which of them is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train
from agents import Orchestrator
from agents.algorithms import AlgorithmName
from agents.evaluation import decision
from agents.training.config import TrainConfig
from agents.training.runtime import generators_restored
from agents.training.seeds import write_seeds_report
from agents.training.trainer import deploy_command
from leeroo_env import ExpertTable, InputError
from tests.agents.policies.test_multi_call import short_fits  # noqa: F401 - these tests need no precision either
from tests.conftest import random_table
from tests.synthetic import DOUBT_COST_USD, DOUBTS, doubting_table
from tests.test_train import CHECKPOINTS, killed_at

OPTIONS = ("--timesteps", "3000", "--n-envs", "16", "--horizon", "8")


@pytest.fixture(scope="module", autouse=True)
def short_evaluations() -> Iterator[None]:
    """Fewer episodes: what is compared here differs by a lot."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("evaluation.evaluate", "evaluation.report", "training.callbacks", "training.trainer"):
            patch.setattr(f"agents.{module}.episodes_for", lambda rules, queries=0: 48)
        yield


def arguments(run_dir: Path, *options: str) -> list[str]:
    return ["--table", str(run_dir.parent / "table"), "--run-dir", str(run_dir), *OPTIONS, *options]


def tensors(policy: Path) -> dict[str, torch.Tensor]:
    return load_file(policy / "policy.safetensors")


def same_policy(one: Path, other: Path) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a table where answers tell more than questions."""
    path = tmp_path_factory.mktemp("calls")
    doubting_table(n=400).save(path / "table")
    return path


@pytest.fixture(scope="module")
def run_dir(where: Path) -> Path:
    """An uninterrupted run with the default."""
    assert train.main(arguments(where / "auto")) == 0
    return where / "auto"


def evaluation_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "evaluation.json").read_text())


def test_val_decides_and_the_report_says_so(run_dir: Path):
    evaluation, report = evaluation_of(run_dir), (run_dir / "report.md").read_text()
    calls = evaluation["decision"]["training"]["calls"]
    assert calls["several"] and calls["trained"] and calls["max_calls"] == 3 and calls["gain"] > 0.02
    assert (
        "- Several calls a query were kept, not one: on train and val, up to 3 calls score +"
        in report.split("## What each")[0]
    )
    names = list(evaluation["routers"])
    assert names[:4] == ["agent", "agent before PPO", "agent with one call", "random"] and "majority" in names
    agent, one = (np.array(evaluation["routers"][name]["calls"]).sum(axis=1) for name in (names[0], names[2]))
    assert agent.max() > 1.5 and one == pytest.approx(np.ones(6))
    for name in names[1:3]:
        assert f"| {name} | 0." in report and len(evaluation["all_budgets"]["routers"][name]["score"]) == 10
        assert name in evaluation["metrics"]
    assert "Calls per query, of at most 3, by budget: " in report


def test_all_three_policies_are_stored(run_dir: Path):
    kept, one, several = (
        Orchestrator.load(path) for path in (run_dir, run_dir / "one-call", run_dir / "several-calls")
    )
    assert (kept.max_calls, one.max_calls, several.max_calls) == (3, 1, 3)
    assert same_policy(run_dir / "policy", run_dir / "several-calls/policy")
    for directory in (run_dir, run_dir / "one-call"):
        assert list(directory.glob("events.*")) and list(directory.glob("checkpoints/step-*"))


@pytest.mark.parametrize(("number", "policy"), [("3", "several-calls/policy"), ("1", "one-call/policy")])
def test_each_is_trained_as_with_a_number(number: str, policy: str, run_dir: Path):
    fixed = run_dir.parent / f"fixed-{number}"
    assert train.main(arguments(fixed, "--max-calls", number)) == 0
    assert same_policy(fixed / "policy", run_dir / policy)
    evaluation, row = evaluation_of(fixed), "agent" if number == "3" else "agent with one call"
    assert evaluation["routers"]["agent"] == evaluation_of(run_dir)["routers"][row]
    assert evaluation["decision"]["training"]["calls"] is None and not (fixed / "one-call").exists()


def test_several_calls_that_cannot_gain_are_not_trained(where: Path):
    """Where all experts give the same answers, the plan of several calls gains nothing over that of one."""
    rng = np.random.default_rng(0)
    right = rng.random((400, 1)) < np.full(3, 0.6)
    same = ExpertTable.from_arrays(
        "same",
        DOUBTS,
        rng.normal(size=(400, 4)).astype(np.float32),
        right,
        np.broadcast_to(DOUBT_COST_USD, (400, 3)),
        answers=np.where(right, "right", "wrong").astype(object),
    )
    run_dir = where / "same" / "run"
    same.save(run_dir.parent / "table")
    assert train.main(arguments(run_dir)) == 0
    calls = evaluation_of(run_dir)["decision"]["training"]["calls"]
    assert not calls["trained"] and not calls["several"] and not (run_dir / "checkpoints").exists()
    report = (run_dir / "report.md").read_text()
    assert "the plan of up to 3 calls scores +0.00 ± 0.00 points" in report and "So they were not trained." in report
    assert same_policy(run_dir / "policy", run_dir / "one-call/policy")
    untrained = Orchestrator.load(run_dir / "several-calls")
    assert (untrained.max_calls, Orchestrator.load(run_dir).max_calls) == (3, 1)
    before = (run_dir / "evaluation.json").read_bytes()
    assert train.main(["--resume", "--run-dir", str(run_dir)]) == 0
    assert (run_dir / "evaluation.json").read_bytes() == before


def test_the_starting_policy_is_the_same_without_a_process_of_its_own(run_dir: Path):
    with patch("agents.training.trainer.in_background", lambda work: work()):
        assert train.main(arguments(run_dir.parent / "alone", "--max-calls", "3")) == 0
    assert same_policy(run_dir.parent / "alone/policy", run_dir / "several-calls/policy")


def test_one_call_is_kept_where_several_are_worse(run_dir: Path):
    """Said by a rule that is turned round; the run is evaluated again."""
    copy = run_dir.parent / "turned"
    shutil.copytree(run_dir, copy)

    def turned(budgets_usd: list[float], several: Any, one: Any, max_calls: int) -> decision.CallsChoice:
        return decision.choose_calls(budgets_usd, one, several, max_calls)

    with patch("agents.training.trainer.choose_calls", turned):
        assert train.main(["--resume", "--run-dir", str(copy)]) == 0
    assert Orchestrator.load(copy).max_calls == 1 and same_policy(copy / "policy", copy / "one-call/policy")
    evaluation, before = evaluation_of(copy), evaluation_of(run_dir)["routers"]
    assert list(evaluation["routers"])[:3] == ["agent", "agent before PPO", "agent with several calls"]
    assert evaluation["routers"]["agent"] == before["agent with one call"]
    assert evaluation["routers"]["agent with several calls"] == before["agent"]
    report = (copy / "report.md").read_text()
    assert "One call a query was kept, not several" in report and "Calls per query, of at most" not in report

    write_seeds_report(copy, [run_dir, copy])  # each row of a seed without it is its agent
    assert "| calls a query |" in (copy / "report.md").read_text() and "| one |" in (copy / "report.md").read_text()
    scores = json.loads((copy / "seeds.json").read_text())["scores"]
    assert scores["agent with one call"] == [before["agent with one call"]["score"]] * 2
    assert scores["agent with several calls"] == [before["agent"]["score"]] * 2


def test_a_run_killed_in_either_training_goes_on_to_the_same_bits(run_dir: Path):
    killed, resume = run_dir.parent / "killed", ["--resume", "--run-dir", str(run_dir.parent / "killed")]
    killed_at(CHECKPOINTS, 2, arguments(killed), after=True)
    assert list(killed.glob("one-call/checkpoints/step-*")) and not (killed / "checkpoints").exists()
    at = "agents.training.trainer.Trainer._fit_one_call"
    killed_at(at, 1, resume, after=True)
    assert not (killed / "checkpoints").exists() and Orchestrator.load(killed).max_calls == 1, "until val has decided"
    killed_at(CHECKPOINTS, 2, resume, after=True)
    assert list(killed.glob("checkpoints/step-*")) and not (killed / "report.md").exists()
    assert train.main(resume) == 0
    for policy in ("policy", "one-call/policy", "several-calls/policy"):
        assert same_policy(killed / policy, run_dir / policy)
    assert (killed / "evaluation.json").read_bytes() == (run_dir / "evaluation.json").read_bytes()


def test_a_router_of_several_calls_is_deployed_without_a_number(run_dir: Path):
    command = deploy_command(TrainConfig(str(run_dir.parent / "table")))
    assert "--max-calls" not in command
    deployed = run_dir.parent / "majority"
    assert train.main(arguments(deployed, "--agent", "majority")) == 0
    assert Orchestrator.load(deployed).max_calls == 3
    assert "| cascade routing |" in (deployed / "report.md").read_text()


def test_what_auto_stands_for():
    table, silent = doubting_table(n=60), random_table()
    assert TrainConfig().most_calls(table) == 3 and TrainConfig().most_calls(silent) == 1
    assert TrainConfig().most_calls(table.select(list(DOUBTS[:1]))) == 1
    assert TrainConfig(policy="mlp").most_calls(table) == 1 and TrainConfig(algo="a2c").most_calls(table) == 3
    others: list[AlgorithmName] = ["dqn", "maskable_ppo"]
    assert [TrainConfig(algo=algo).most_calls(table) for algo in others] == [1, 1]
    assert TrainConfig(agent="paced kNN").most_calls(table) == 1 and TrainConfig(agent="cascade").most_calls(table) == 3
    assert TrainConfig(max_calls=2).most_calls(table) == 2
    for fewer in (silent, table.select(list(DOUBTS[:1]))):
        with pytest.raises(InputError, match="agent cascade: compares the answers of several experts"):
            TrainConfig(agent="cascade").most_calls(fewer)


def test_up_to_four_of_many_experts():
    rng = np.random.default_rng(0)
    many = random_table(k=6)
    answers = rng.choice(["a", "b"], size=(60, 6)).astype(object)
    table = ExpertTable.from_arrays(
        "many", many.experts, many.embeddings.numpy(), many.scores.numpy(), many.costs_usd.numpy(), answers=answers
    )
    assert TrainConfig().most_calls(table) == 4
    assert replace(TrainConfig(), max_calls=6).most_calls(table) == 6


def test_random_generators_go_on_where_they_were():
    def draw() -> tuple[float, float]:
        return float(torch.rand(())), float(np.random.rand())  # noqa: NPY002

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = [draw() for _ in range(2)]
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    first = draw()
    with generators_restored():
        draw()
        torch.manual_seed(9)
    assert [first, draw()] == expected
