"""Evaluations play every query of a split equally often, whatever the router, the budget and where they run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.evaluation.evaluate import episodes_for, evaluation_episodes
from agents.evaluation.report import Played, play, report_budgets
from agents.routers import Cheapest, Random
from agents.training import runtime
from agents.training.baselines import Baselines
from leeroo_env import dynamics
from tests.conftest import random_table


@pytest.mark.parametrize(("n", "horizon"), [(93, 7), (400, 64), (31, 31), (20, 1)])
def test_queries_are_played_equally_often(n: int, horizon: int):
    rules = dynamics.make_rules(random_table(n=3 * n), "test", min(horizon, n))
    n, horizon = len(rules.rows), rules.horizon
    passes = 5
    rows = evaluation_episodes(rules, [0.1, 0.2], passes * (n // horizon), seed=3).rows.view(2, -1, horizon)
    assert torch.equal(rows[0], rows[1]), "the same at every budget"
    assert all(len(episode.unique()) == horizon for episode in rows[0]), "a query comes once in an episode"
    plays = torch.bincount(rows[0].flatten(), minlength=len(rules.table))[rules.rows]
    assert plays.max() <= passes and plays.sum() == passes * (n // horizon) * horizon
    if n % horizon == 0:
        assert (plays == passes).all()
    other = evaluation_episodes(rules, [0.1], 2, seed=4).rows
    assert not torch.equal(other, rows[0][:2]) or n == 1, "another seed, other episodes"


def test_few_queries_are_played_more_often_and_many_in_part():
    table = random_table(n=3_000)
    rules = dynamics.make_rules(table, "train", 10)
    assert len(rules.rows) * 3 > 2_048
    assert episodes_for(rules) == -(-3 * len(rules.rows) // 10)
    assert episodes_for(rules, 500) == 50, "as many as asked for"
    few = dynamics.make_rules(random_table(n=93), "test", 31)
    assert episodes_for(few) * 31 >= 2_048


def test_baselines_are_the_same_here_and_in_the_background(monkeypatch: pytest.MonkeyPatch):
    table = random_table(n=300)
    rules = {split: dynamics.make_rules(table, split, 8) for split in ("val", "test")}
    val, test = (Played(rules[split], split, report_budgets(rules["val"])) for split in ("val", "test"))
    groups = ({"cheapest": Cheapest(table)}, {"random": Random(table, 1)})

    def played() -> tuple[Played, Played]:
        baselines = Baselines()
        for group in groups:
            baselines.begin(lambda group=group: group, val, test)  # type: ignore[misc]
        assert list(baselines.on_val(1)) == ["cheapest"]
        on_val = baselines.on_val()
        assert baselines.ready()
        return replace(val, all=on_val), replace(test, all=baselines.on_test())

    elsewhere = played()
    monkeypatch.setattr(runtime.sys, "platform", "another")
    here = played()
    for one, other, episodes in zip(elsewhere, here, (val, test), strict=True):
        assert list(one.all) == ["cheapest", "random"]
        for name, result in one.all.items():
            assert np.array_equal(result.scored, other.all[name].scored)
            assert np.array_equal(result.scored, play({**groups[0], **groups[1]}, episodes).all[name].scored)
        assert one.main["random"].score.shape == (len(val.budgets.main),)
