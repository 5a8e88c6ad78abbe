"""What is fitted at the same time and shared is what would be fitted alone."""

from __future__ import annotations

import torch

from agents.estimators.ensemble import fit_predictor
from agents.evaluation.evaluate import evaluate
from agents.routers import one_call_routers
from agents.training.fits import fit_all
from leeroo_env.dynamics import make_rules
from tests.conftest import random_table


def test_fitted_together_as_alone():
    table, horizon, seeds = random_table(n=200), 8, [3, 4]
    predictors, routers = fit_all(table, horizon, seeds)
    alone = fit_predictor(table, 3).tensors()
    for name, tensor in predictors[0].tensors().items():
        assert torch.equal(tensor, alone[name]), name
    other, own = predictors[1].tensors(), fit_predictor(table, 4).tensors()
    assert all(torch.equal(other[name], own[name]) for name in own if name.startswith("networks."))
    assert torch.equal(other["ridge.weights"], alone["ridge.weights"])
    rules, expected = make_rules(table, "test", horizon), one_call_routers(table, horizon, 3)
    assert list(routers) == list(expected)
    for name, router in routers.items():
        one, two = (evaluate(each, rules, [0.5, 2.0], 20) for each in (router, expected[name]))
        assert (one.chosen == two.chosen).all(), name
