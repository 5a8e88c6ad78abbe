"""benchmarks/published.py writes a section with the published rows, ours and the controls."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from agents.estimators import kernel_ridge_estimates
from agents.evaluation.evaluate import evaluate
from agents.evaluation.published import arena_score
from agents.routers import BestSingle, Cheapest, PacedPrice, Router
from leeroo_env import ExpertTable
from leeroo_env.dynamics import make_rules

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WEAK_USD, STRONG_USD = 0.00024, 0.0247


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("published")


def save(path: Path, n: int = 280) -> str:
    """A table whose embeddings tell which questions the weak model answers; the strong one answers nine of ten."""
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((n, 8)).astype(np.float32)
    scores = np.stack([embeddings[:, 0] > 0, rng.random(n) < 0.9], axis=1)
    costs = np.array([WEAK_USD, STRONG_USD]) * np.ones((n, 1))
    split = ["train", "val", "test", "test"] * (n // 4)
    domains = ["one", "one", "one", "two"] * (n // 4)
    table = ExpertTable.from_arrays(
        path.name, ["weak", "strong"], embeddings, scores, costs, split=split, domains=domains
    )
    table.save(path)
    return str(path)


def rows_of(section: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in section.splitlines() if "|" in line]
    return {cells[0].strip("*"): cells[1:] for cells in lines}


def few_routers(table: ExpertTable, horizon: int, seed: int) -> dict[str, Router]:
    """Instead of all of the registry, which take long to fit."""
    estimates = kernel_ridge_estimates(table, seed)
    return {"best single": BestSingle(table), "paced kernel ridge": PacedPrice(table, estimates)}


def test_a_section_with_the_published_rows_ours_and_the_controls(
    published: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(published, "one_call_routers", few_routers)
    out = tmp_path / "PUBLISHED.md"
    table = save(tmp_path / "paretobandit-made-up")
    published.main((table,), timesteps=64, queries=280, runs=tmp_path / "runs", out=out)
    title, section = re.split(r"^## ", out.read_text(), flags=re.MULTILINE)
    assert title == "# Published results, and ours in the same conditions\n\n"
    assert section.startswith("ParetoBandit's test stream\n")
    assert "`python benchmarks/published.py tables/paretobandit-made-up --seeds 1 --timesteps 64" in section
    rows = rows_of(section)
    assert list(rows)[2:4] == ["ParetoBandit (published)", "agent"]
    assert rows["ParetoBandit (published)"] == ["0.793", "0.813", "0.855", "", *rows["ParetoBandit (published)"][4:]]
    assert {"best single", "paced kernel ridge", "always weak", "lottery with the agent's shares"} <= rows.keys()
    assert rows["agent"][-1] == "0.0 %" and rows["always strong"][-1] == "has no budget"


def test_the_measures_of_a_lottery_and_of_one_expert(published: ModuleType, tmp_path: Path):
    table = ExpertTable.load(save(tmp_path / "made-up"))
    rules = make_rules(table, "test", 20)
    like = evaluate(Cheapest(table), rules, [WEAK_USD, STRONG_USD], 7)
    half = replace(like, calls=np.full((2, 2), 0.5))
    lottery = published._controls(table, {"agent": half})["lottery with the agent's shares"]
    strong_calls = published._strong_calls(table, [], lottery)
    assert list(strong_calls.values()) == pytest.approx([0.5, 0.5, 0.8], abs=1e-6)
    weak = published._mean_of_tests(table, [], like)
    assert weak["mean of the tests"] == pytest.approx((weak["one"] + weak["two"]) / 2)
    curve = published._curve(table, [], lottery)
    assert curve["APGR"] == pytest.approx(3 / 8 + 0.0, abs=0.01)  # half the gap at half the cost, then level
    assert curve["RouterArena's formula"] == pytest.approx(
        arena_score(float(lottery.score[0]), 1000 * float(lottery.cost_usd[0]))
    )


def test_a_peer_plays_in_its_own_environment(published: ModuleType, tmp_path: Path):
    table = ExpertTable.load(save(tmp_path / "made-up"))
    script = tmp_path / "peer.py"  # the point 0 asks the weak model about every query, the point 1 the strong one
    script.write_text(
        f"import sys\nsys.path.append({str(BENCHMARKS)!r})\nimport numpy as np\nfrom peer_lottery import save\n"
        "data = dict(np.load(sys.argv[1]))\n"
        "save(sys.argv[2], data, {'both': np.arange(2)[:, None] + 0 * data['embeddings'][:, 0].astype(int)})\n"
    )
    budgets = [WEAK_USD, (WEAK_USD + STRONG_USD) / 2, 2 * STRONG_USD]
    published._ask_peer(sys.executable, str(script), table, budgets, 0, tmp_path / "played.npz")
    like = evaluate(Cheapest(table), make_rules(table, "test", 20), budgets, 7)
    played = published._played_by(dict(np.load(tmp_path / "played.npz")), table, like)["both"]
    assert played.calls == pytest.approx(np.array([[1, 0], [0.5, 0.5], [0, 1]]), abs=1e-6)
    assert played.cost_usd == pytest.approx(np.array([*budgets[:2], STRONG_USD]))
    weak, strong = (table.scores[:, k].numpy()[like.rows[0]] for k in range(2))
    assert played.scored == pytest.approx(np.stack([weak, (weak + strong) / 2, strong]), abs=1e-6)


def test_a_lottery_buys_the_best_points_for_the_money(published: ModuleType):
    mixed = importlib.import_module("peer_lottery").mixed
    score, cost = np.array([0.2, 0.1, 0.6, 0.5]), np.array([1.0, 2.0, 3.0, 5.0])
    assert mixed(score, cost, 2.0) == pytest.approx([0.5, 0, 0.5, 0])
    assert mixed(score, cost, 4.0) == pytest.approx([0, 0, 1, 0])
    assert mixed(score, cost, 0.5) == pytest.approx([1, 0, 0, 0])
