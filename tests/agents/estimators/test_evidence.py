"""The evidence of answers: it tells right from wrong, and counts for nothing where it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from agents.estimators import Estimates
from agents.estimators.evidence import (
    EvidenceModel,
    expected_calibration_error,
    fit_evidence,
    table_evidence,
    updated,
)
from leeroo_env import ExpertTable, dynamics

N, K = 900, 3


def told_table(telling: float, rows: int = N) -> tuple[ExpertTable, Estimates]:
    """Three experts that are right half of the time; a column tells right from wrong by `telling` deviations, but for
    the last expert, of which nothing is known."""
    rng = np.random.default_rng(0)
    right = rng.random((rows, K)) < 0.5
    costs = np.full((rows, K), 1e-4)
    answers = np.where(right, "right", "wrong").tolist()
    table = ExpertTable.from_arrays("told", ["a", "b", "c"], np.ones((rows, 2)), right * 1.0, costs, answers=answers)
    numbers = telling * right + rng.normal(size=(rows, K)) * [1.0, 10.0, 1.0] + [0.0, 50.0, 0.0]
    numbers[:, 1] += 9 * telling * right[:, 1]
    numbers[:, 2] = np.nan
    row = np.array([int(name.split("-")[1]) for name in table.answers["query_id"].to_pylist()])
    expert = np.array([table.experts.index(name) for name in table.answers["expert"].to_pylist()])
    column = pa.array(numbers[row, expert], from_pandas=True)
    table = replace(table, answers=table.answers.append_column("evidence_sure", column))
    return table, Estimates(torch.full((rows, K), 0.5), torch.full((rows, K), 1e-4))


def log_loss(chance: Tensor, scores: Tensor) -> float:
    return float(torch.nn.functional.binary_cross_entropy(chance.clamp(1e-4, 1 - 1e-4), scores.float()))


def test_it_tells_right_from_wrong_on_queries_that_it_has_not_seen():
    table, estimates = told_table(telling=2.0)
    fitted = fit_evidence(table, table.rows("train"), estimates)
    assert fitted is not None
    model, evidence = fitted
    test = table.rows("test")
    for expert, best in ((0, 0.45), (1, 0.45), (2, 0.72)):  # without evidence: log 2 = 0.69
        after = updated(estimates.score[test, expert], evidence[test, expert], 1.0)
        assert log_loss(after, table.scores[test, expert]) < best
    assert torch.equal(table_evidence(model, table, estimates)[test], evidence[test])
    assert evidence.abs().max() <= dynamics.MAX_EVIDENCE


def test_training_queries_get_theirs_from_a_model_that_did_not_see_them():
    """Of 60 queries with noise for evidence a model would learn the noise; out of fold it does not help."""
    table, estimates = told_table(telling=0.0, rows=100)
    assert fit_evidence(table, table.rows("train"), estimates) is None


def test_what_a_table_does_not_have_tells_nothing():
    table, estimates = told_table(telling=2.0)
    assert fit_evidence(replace(table, answers=table.answers.slice(0, 0)), table.rows("train"), estimates) is None


def test_an_expert_that_joins_has_no_evidence_yet():
    table, estimates = told_table(telling=2.0)
    fitted = fit_evidence(table, table.rows("train"), estimates)
    assert fitted is not None
    grown, experts = fitted[0].with_expert(), torch.arange(K + 1)
    numbers, flags = torch.randn(K + 1, 4), torch.zeros(K + 1, 2)
    chance = torch.full((K + 1,), 0.5)
    evidence = grown(grown.inputs(numbers, flags, chance, experts), experts)
    own = fitted[0](fitted[0].inputs(numbers[:K], flags[:K], chance[:K], experts[:K]), experts[:K])
    assert torch.allclose(evidence[:K], own, atol=1e-5) and evidence[K] == 0


def test_a_model_that_was_not_fitted_tells_nothing():
    model = EvidenceModel(["evidence_sure"], 2)
    experts = torch.tensor([0, 1, 1])
    inputs = model.inputs(torch.randn(3, 4), torch.ones(3, 2), torch.full((3,), 0.3), experts)
    assert inputs.shape == (3, 11) and torch.equal(model(inputs, experts), torch.zeros(3))


def test_no_evidence_leaves_the_bits_as_they_are():
    chance = torch.rand(50)
    assert torch.equal(updated(chance, torch.zeros(50), 0.5), chance)
    assert (updated(chance, torch.full((50,), 2.0), 0.5) > chance)[chance < 0.99].all()


def test_calibration_error():
    chance = torch.linspace(0, 1, 3_000)
    draws = (torch.rand(3_000, generator=torch.Generator().manual_seed(0)) < chance).float()
    assert expected_calibration_error(chance, draws) < 0.03
    assert expected_calibration_error(torch.full((100,), 0.9), torch.full((100,), 0.5)) == pytest.approx(0.4)
