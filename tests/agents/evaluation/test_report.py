"""The report says what the numbers say."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.estimators import Estimates
from agents.evaluation.decision import CallsChoice, Interval
from agents.evaluation.evaluate import evaluate, lead
from agents.evaluation.headline import Training
from agents.evaluation.report import Played, Report, play, report_budgets, write_report
from agents.routers import Cheapest, FixedMixture, Planned, Random, Router
from leeroo_env import ExpertTable, dynamics
from tests.conftest import random_table
from tests.synthetic import synthetic_table

NOTHING_GAINED = Training("ppo", "the plan computed from the estimates", steps=1000)


def report_of(
    table: ExpertTable,
    agent: Router,
    tmp_path: Path,
    horizon: int = 32,
    training: Training = NOTHING_GAINED,
    budget: tuple[float, ...] = (),
    **others: Router,
) -> str:
    """A report of these routers, with the truth for estimates."""
    routers = {"agent": agent, "cheapest": Cheapest(table), "best mixture": FixedMixture(table), **others}
    rules = {split: dynamics.make_rules(table, split, horizon) for split in ("val", "test")}
    budgets = report_budgets(rules["val"], budget)
    val, test = (play(routers, Played(rules[split], split, budgets, queries=2_048)) for split in ("val", "test"))
    horizons = dict.fromkeys(("train", "val", "test"), horizon)
    command = "leeroo train --table t --agent NAME"
    estimates = Estimates(table.scores, table.costs_usd)
    write_report(tmp_path, Report("agent", routers, val, test, estimates, training, horizons, command, "the last word"))
    return (tmp_path / "report.md").read_text()


def clairvoyant(table: ExpertTable) -> Router:
    return Planned(table, Estimates(table.scores, table.costs_usd))


def test_it_opens_with_what_to_deploy_and_what_that_saves(tmp_path: Path):
    """With the truth for estimates all that `large` answers is answered, for a third of its price."""
    table = synthetic_table()
    text = report_of(table, clairvoyant(table), tmp_path)
    first = text.splitlines()[2]
    assert first.startswith("**Deploy the agent with a budget of $0.")
    assert (
        "always large (the best and most expensive expert)" in text
        and "PPO added nothing to the agent's start" in first
    )
    decision = json.loads((tmp_path / "evaluation.json").read_text())["decision"]
    assert decision["deploy"] == "agent" and decision["as_good_as_best_expert"]
    large = decision["rows"][1]
    assert large["name"] == "always large" and large["usd_per_1000_queries"] == pytest.approx(1.0)
    saved = large["saved"]
    assert 0.5 < saved["low"] < saved["mean"] < saved["high"] < 0.75, "half cost .1, a quarter .2, a quarter 1: .35"
    assert f"saves {100 * saved['mean']:.0f} % of the cost" in text
    assert large["lead"]["low"] <= 0 <= large["lead"]["high"] + 0.01
    assert decision["budget_usd_per_1000_queries"] == pytest.approx(1000 * 0.0005, rel=0.3)
    assert "the last word" in text and "| 8 |" in text and "| 256 |" in text
    assert "| large | 1.000 | $1.00 | matched at" in text and "matched already" in text
    assert "## Which experts are asked, by domain" in text and "| expert | code | easy | hard |" in text


@pytest.mark.parametrize(("low", "high", "chance"), [(0.001, 0.009, False), (-0.001, 0.011, True)])
def test_it_opens_with_it_where_training_brought_nothing(low: float, high: float, chance: bool, tmp_path: Path):
    table, gain = synthetic_table(), Interval((low + high) / 2, low, high)
    training = Training("ppo", "the plan", steps=1000, kept_step=500, gain=gain)
    text = report_of(table, clairvoyant(table), tmp_path, training=training).split("# Appendix")[0]
    assert text.count("PPO added +0.50 points") == 1 and ("no more than chance may do" in text) == chance
    assert ("PPO added" in text.splitlines()[2]) == chance


@pytest.mark.parametrize("several", [True, False])
def test_it_says_how_many_calls_were_kept_and_why(several: bool, tmp_path: Path):
    calls = CallsChoice(several, 4, 0.0085, 0.0030, 0.5, -0.0010, 0.0020)
    training = Training("ppo", "the plan", steps=1000, calls=calls)
    table = synthetic_table()
    text = report_of(table, clairvoyant(table), tmp_path, training=training).split("## What each budget buys")[0]
    kept = "Several calls a query were kept, not one" if several else "One call a query was kept, not several"
    assert f"- {kept}: on train and val, up to 4 calls score +0.85 ± 0.30 points against one" in text
    assert "at $0.500 per 1,000 queries, -0.10 ± 0.20 points" in text
    assert json.loads((tmp_path / "evaluation.json").read_text())["decision"]["training"]["calls"]["several"] == several


def test_a_router_that_is_better_is_what_to_deploy(tmp_path: Path):
    table = synthetic_table()
    text = report_of(table, Random(table), tmp_path, planned=clairvoyant(table))
    assert text.splitlines()[2].startswith("**Deploy the router planned with a budget of $")
    assert '`leeroo train --table t --agent "planned"`' in text.splitlines()[2]


def test_an_expert_that_is_as_good_needs_no_router(tmp_path: Path):
    """The cheapest is the best: all that a router may do is to ask it."""
    table = random_table(n=600)
    scores = table.scores.clone()
    scores[:, 0] = 1.0
    object.__setattr__(table, "scores", scores)
    object.__setattr__(table, "costs_usd", table.mean_cost_usd().expand(600, 4).clone())
    text = report_of(table, clairvoyant(table), tmp_path)
    assert text.splitlines()[2].startswith("**Deploy no router: always ask expert-0, at $0.")
    assert json.loads((tmp_path / "evaluation.json").read_text())["decision"]["expert"] == "expert-0"


def test_budgets_that_one_would_deploy_stand_beside_the_grid(tmp_path: Path):
    table = synthetic_table()
    text = report_of(table, Cheapest(table), tmp_path)
    for share in ("25 %", "50 %", "75 %", "100 %"):
        assert f"| {share} |" in text
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    rules = dynamics.make_rules(table, "test")
    assert evaluation["budgets_usd"] == dynamics.budget_grid(rules)
    assert (
        len(evaluation["all_budgets"]["budgets_usd"])
        == 10
        == len(evaluation["all_budgets"]["routers"]["agent"]["score"])
    )


def test_the_budget_of_the_user_holds(tmp_path: Path):
    table = synthetic_table()
    text = report_of(table, clairvoyant(table), tmp_path, budget=(0.0007,))
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["budgets_usd"] == [0.0007]
    assert evaluation["decision"]["budget_usd_per_1000_queries"] == pytest.approx(0.7)
    assert "with a budget of $0.700 per 1,000 queries" in text.splitlines()[2]


def test_of_a_range_of_budgets_both_ends_are_played():
    rules = dynamics.make_rules(synthetic_table(), "val")
    budgets = report_budgets(rules, (0.0002, 0.0008))
    assert budgets.main[0] == pytest.approx(0.0002) and budgets.main[-1] == pytest.approx(0.0008)
    assert {budgets.all[i] for i in budgets.to_choose} == set(budgets.main)


def test_few_queries_and_short_episodes_are_warned_of(tmp_path: Path):
    table = random_table(n=93)
    text = report_of(table, Cheapest(table), tmp_path, horizon=31)
    assert "**Warning: few queries.** Val has 31 and test has 31" in text
    assert "shorter episodes" not in text
    horizons = {"train": 64, "val": 31, "test": 31}
    rules = {split: dynamics.make_rules(table, split, 31) for split in ("val", "test")}
    budgets, routers = report_budgets(rules["val"]), {"agent": Cheapest(table)}
    val, test = (play(routers, Played(rules[split], split, budgets, queries=500)) for split in ("val", "test"))
    estimates = Estimates(table.scores, table.costs_usd)
    write_report(tmp_path, Report("agent", routers, val, test, estimates, NOTHING_GAINED, horizons, "x", ""))
    warning = "trained in episodes of 64 queries; val 31 and test 31 here"
    assert warning in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("k", [1, 2])
def test_few_experts_and_equal_prices_make_a_report(k: int, tmp_path: Path):
    table = random_table(n=120, k=k)
    object.__setattr__(table, "costs_usd", torch.ones(120, k))
    text = report_of(table, Cheapest(table), tmp_path, horizon=10)
    assert "| prediction regret |" in text and "**Deploy no router" in text


def test_free_experts_save_nothing(tmp_path: Path):
    table = random_table(n=600)
    object.__setattr__(table, "costs_usd", torch.zeros(600, 4))
    text = report_of(table, Cheapest(table), tmp_path)
    assert " nan" not in text.lower() and ("which is free" in text or "Deploy no router" in text)


def test_names_and_numbers_end_no_line_of_a_table(tmp_path: Path):
    table = random_table(n=300)
    renamed = ["$\\frac$", "a|b", "x/y,z", "日本" * 30]
    table = ExpertTable.from_arrays(
        "cheap $_$ table", renamed, table.embeddings.numpy(), table.scores.numpy(), table.costs_usd.numpy()
    )
    lines = report_of(table, Cheapest(table), tmp_path, horizon=8).splitlines()
    for before, line in itertools.pairwise(lines):
        if before.startswith("|") and line.startswith("|"):
            assert before.replace("\\|", "").count("|") == line.replace("\\|", "").count("|")


def test_a_lead_is_that_on_the_same_queries():
    table = random_table(n=300)
    rules = dynamics.make_rules(table, "test", 20)
    budgets = dynamics.budget_grid(rules)
    one, other = (evaluate(router, rules, budgets, 50) for router in (Random(table), Cheapest(table)))
    gain, stderr, mean, mean_stderr = lead(one, other)
    np.testing.assert_allclose(gain, one.score - other.score)
    assert mean == pytest.approx(one.mean_score - other.mean_score)
    assert lead(one, one)[1:] == (pytest.approx(np.zeros(6)), 0, 0)
    assert 0 < mean_stderr < np.sqrt(one.stderr.mean() ** 2 + other.stderr.mean() ** 2) * 1.5 and (stderr > 0).all()
