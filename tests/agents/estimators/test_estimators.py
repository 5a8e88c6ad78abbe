"""Estimates of training queries never saw their own answers, and all of them tell queries apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import estimators
from agents.estimators import (
    Estimates,
    domain_mean_estimates,
    kernel_ridge,
    kernel_ridge_estimates,
    knn,
    knn_estimates,
    linucb,
    linucb_estimates,
    mlp,
    mlp_estimates,
    ridge,
    ridge_pca,
    ridge_pca_estimates,
)
from agents.estimators.knn import Neighbours
from agents.estimators.mlp import FOLDS
from leeroo_env import ExpertTable
from tests.conftest import random_table
from tests.synthetic import synthetic_table

METHODS = [domain_mean_estimates, knn_estimates, kernel_ridge_estimates, mlp_estimates, linucb_estimates]


def changed(table: ExpertTable, row: int) -> ExpertTable:
    """The same table with another answer of every expert to one query."""
    scores, costs_usd = table.scores.clone(), table.costs_usd.clone()
    scores[row] = 1 - scores[row]
    costs_usd[row] *= 2
    return replace(table, scores=scores, costs_usd=costs_usd)


def in_units(table: ExpertTable, difference: Tensor) -> float:
    """The largest difference of estimates, scores as they are and costs in units of the mean cost."""
    return float((difference / torch.cat([torch.ones(len(table.experts)), table.mean_cost_usd()])).abs().max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [1, 2])
def test_estimates_every_row_the_same_with_the_same_seed(method, k: int):
    table = random_table(n=90, k=k)
    before = torch.random.get_rng_state()
    first, again = method(table, seed=1), method(table, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before), "leaves the global generator alone"
    for estimated, other in ((first.score, again.score), (first.cost_usd, again.cost_usd)):
        assert estimated.shape == (90, k) and estimated.dtype == torch.float32 and bool(estimated.isfinite().all())
        assert torch.equal(estimated, other)
    assert bool((first.cost_usd >= 0).all())
    if method in (mlp_estimates, linucb_estimates) and k == 2:
        assert not torch.equal(first.score, method(table, seed=2).score)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_query_is_estimated_without_its_own_answers(method):
    """Its estimate stays where it is when its answers change; those of the others move."""
    table = synthetic_table(300)
    row = int(table.rows("train")[7])
    before, after = method(table).joint(), method(changed(table, row)).joint()
    moved = (after - before).abs()
    of_the_mean = 2.5 / len(table.rows("train"))  # which is of all training queries, where it is used
    # whom LinUCB asks next follows from what it has heard
    assert in_units(table, moved[row]) < (0.2 if method is linucb_estimates else of_the_mean)
    others = table.rows("train")[table.rows("train") != row]
    assert in_units(table, moved[others].amax(dim=0)) > 0.005


def test_a_fold_of_networks_has_not_seen_it():
    """All queries of one fold change; what is said of them follows only from the mean and scale of all."""
    table = synthetic_table(300)
    rows = table.rows("train")
    fold = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)) % FOLDS
    held_out = rows[fold == 0]
    scores = table.scores.clone()
    scores[held_out] = scores[held_out].roll(1, dims=0)  # the same mean and scale
    before, after = (mlp_estimates(t).joint() for t in (table, replace(table, scores=scores)))
    moved = (after - before).abs()
    assert float(moved[held_out].max()) < 1e-4
    assert float(moved[rows[fold == 1]].max()) > 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_estimates_are_no_better_on_training_queries_than_on_new_ones(method):
    """Where answers are noise, whoever has seen them looks better than the mean on training queries, others never."""
    table = random_table(n=600, seed=3)
    rows = table.rows("train")
    targets, estimated = table.scores[rows], method(table).score[rows]
    error = (estimated - targets).square().mean()
    assert float(error / (targets - targets.mean(dim=0)).square().mean()) > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_estimates_tell_queries_apart(method):
    table = synthetic_table(1500)
    rows = table.rows("val")
    targets = table.scores[rows]
    error = (method(table).score[rows] - targets).square().mean()
    assert float(error / (targets - targets.mean(dim=0)).square().mean()) < 0.6


@pytest.mark.parametrize("method", METHODS)
def test_what_never_varies_is_estimated_as_it_is(method):
    """Free experts and experts at a fixed price: no division by a spread of nothing."""
    table = random_table(n=120, k=3)
    costs_usd = torch.tensor([0.0, 1e-4, 3e-3]).expand(120, 3).contiguous()
    unit = costs_usd[0].clamp(min=1e-4)
    estimated = method(replace(table, costs_usd=costs_usd)).cost_usd
    off = ((estimated - costs_usd).abs() / unit).max()
    assert float(off) < 1e-4


def test_domain_means_are_those_of_the_domain():
    table = synthetic_table(3000)
    estimated = domain_mean_estimates(table)
    domain = np.array(table.queries["domain"].to_pylist())
    train = np.isin(np.arange(3000), table.rows("train").numpy())
    for kind in ("easy", "code", "hard"):
        mean = table.scores[torch.from_numpy(train & (domain == kind))].mean(dim=0)
        assert float((estimated.score[torch.from_numpy(~train & (domain == kind))] - mean).abs().max()) < 0.01


def test_domains_that_tell_nothing_are_the_overall_mean():
    table = random_table(n=90)  # all of one domain
    estimated = domain_mean_estimates(table)[table.rows("test")]
    assert torch.allclose(estimated.score, table.mean_score().expand(30, 4), atol=1e-6)
    assert torch.allclose(estimated.cost_usd, table.mean_cost_usd().expand(30, 4), rtol=1e-5)


def test_nearest_are_the_nearest_of_the_others(monkeypatch: pytest.MonkeyPatch):
    """Against a plain loop."""
    table = random_table(n=45)
    monkeypatch.setattr(knn, "NEIGHBOURS", (3,))
    estimated, rows = knn_estimates(table), table.rows("train").numpy()
    unit = torch.nn.functional.normalize(table.embeddings, dim=1).numpy()
    for row in range(45):
        others = rows[rows != row]
        cosine = unit[others] @ unit[row]
        best = others[np.argsort(-cosine)[:3]]
        weights = np.exp(knn.SHARPNESS * np.sort(cosine)[::-1][:3])
        expected = (weights[:, None] * table.scores[best].numpy()).sum(axis=0) / weights.sum()
        assert estimated.score[row].numpy() == pytest.approx(expected, abs=1e-5)


def test_the_nearest_of_new_queries_are_those_of_a_search():
    """And of references that are equally near all count, in whatever order they come."""
    generator = torch.Generator().manual_seed(0)
    x, targets = torch.randn(90, 8, generator=generator), torch.rand(90, 6, generator=generator)
    queries = torch.randn(40, 8, generator=generator)
    references = torch.nn.functional.normalize(x, dim=1)
    for sizes in ([5, 20], [20, 5], [10, 10], [90, 1]):
        found = Neighbours(references, targets, torch.tensor(sizes)).predict(queries)
        cosine = torch.nn.functional.normalize(queries, dim=1) @ references.T
        for k, part in zip(sizes, (slice(0, 3), slice(3, 6)), strict=True):
            near, which = cosine.topk(k, dim=1)
            weights = (10 * near).exp()
            mean = torch.einsum("bk,bkt->bt", weights, targets[which][..., part]) / weights.sum(dim=1, keepdim=True)
            torch.testing.assert_close(found[:, part], mean)
    twice = Neighbours(references.repeat(2, 1), targets.repeat(2, 1), torch.tensor([9, 3]))
    expected = Neighbours(references, targets, torch.tensor([5, 2])).predict(queries)
    torch.testing.assert_close(twice.predict(queries), expected)


def test_linucb_leaves_out_what_it_has_heard_itself():
    """Against models fitted again to all other answers that were asked for."""
    table = synthetic_table(150)
    x, rows = linucb._principal(table, table.mean_cost_usd()).features(table.embeddings), table.rows("train")
    answers = torch.stack([table.scores, table.costs_usd * 1000], dim=2)
    asked = linucb._ask(x, answers, rows, table.mean_cost_usd(), torch.Generator().manual_seed(0))
    assert not bool(asked[table.rows("val")].any()) and int(asked[rows].sum(dim=1).max()) <= linucb.PASSES
    estimated, _ = linucb._estimates(x, answers, asked, *linucb._sums(x, answers, asked), 10.0)
    for row in rows[:5]:
        without = asked.clone()
        without[row] = False
        again, _ = linucb._estimates(x, answers, without, *linucb._sums(x, answers, without), 10.0)
        assert torch.allclose(estimated[row], again[row], atol=1e-4)


def test_leaving_one_out_of_kernel_ridge_is_fitting_without_it():
    table = synthetic_table(150)
    row = int(table.rows("train")[3])
    split = table.split.clone()
    split[row] = 2  # test
    own, without = (kernel_ridge_estimates(t).joint()[row] for t in (table, replace(table, split=split)))
    assert in_units(table, own - without) < 0.02


@pytest.mark.parametrize(
    ("method", "module"),
    [
        (knn_estimates, knn),
        (kernel_ridge_estimates, kernel_ridge),
        (ridge_pca_estimates, ridge_pca),
        (mlp_estimates, mlp),
    ],
)
def test_more_training_queries_than_one_matrix_holds(method, module, monkeypatch: pytest.MonkeyPatch):
    """All are used, none for its own estimate, and what comes out is near to what a whole matrix gives."""
    table = synthetic_table(300)
    exact = method(table)
    monkeypatch.setattr(module, "MAX_EXACT", 60)
    monkeypatch.setattr(ridge, "CENTRES", 100)
    before = method(table).joint()
    assert before.shape == (300, 6)
    moved = [
        in_units(table, method(changed(table, int(row))).joint()[row] - before[row]) for row in table.rows("train")[:6]
    ]
    assert max(moved) < 0.05
    rows = table.rows("test")
    error, exact_error = (
        float((estimates[rows].score - table.scores[rows]).square().mean())
        for estimates in (Estimates.from_joint(before), exact)
    )
    assert error < 1.1 * exact_error + 0.01


def test_all_are_exported():
    assert {method.__name__ for method in METHODS} < set(estimators.__all__)
