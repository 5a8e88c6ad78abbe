"""Kernel ridge regression without queries and their near duplicates, against fits that were made without them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agents.estimators import ridge
from agents.estimators.base import draw_folds
from agents.estimators.ridge import draw_centres, errors_left_out, ridge_on_centres

N = 120
ALIKE = torch.arange(N)
ALIKE[[7, 30, 31]], ALIKE[90] = 3, 50


@pytest.fixture(scope="module")
def problem() -> tuple[Tensor, Tensor]:
    """A kernel matrix [n, n] and targets [n, 3]; near duplicates have nearly the same rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 6, generator=generator, dtype=torch.float64)
    x = x[ALIKE] + 1e-3 * x
    y = torch.sin(x[:, :3]) + 0.1 * torch.randn(N, 3, generator=generator, dtype=torch.float64)
    return (-torch.cdist(x, x).square() / 4).exp(), y - y.mean(dim=0)


def refitted(gram: Tensor, y: Tensor, left_out: Tensor, level: float) -> Tensor:
    """Estimates of the queries left out, [n', T], from a fit to the others."""
    kept = ~left_out
    weights = torch.linalg.solve(gram[kept][:, kept] + level * torch.eye(int(kept.sum())), y[kept])
    return gram[left_out][:, kept] @ weights


@pytest.mark.parametrize("group", [3, 50, 10])
def test_a_query_is_left_out_with_its_near_duplicates(problem: tuple[Tensor, Tensor], group: int):
    gram, y = problem
    inverse = torch.linalg.inv(gram + 0.5 * torch.eye(N))
    error = errors_left_out(inverse, inverse @ y, ALIKE)
    left_out = ALIKE.eq(group)
    torch.testing.assert_close(y[left_out] - error[left_out], refitted(gram, y, left_out, 0.5))


def test_with_all_queries_as_centres_it_is_the_whole_kernel_matrix(
    problem: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
):
    """Weights, and estimates of each fold, at the better of two ridges."""
    gram, y = problem
    monkeypatch.setattr(ridge, "JITTER", 1e-5)
    fold = draw_folds(ALIKE, 5, torch.Generator().manual_seed(0))
    assert all(len(fold[ALIKE.eq(first)].unique()) == 1 for first in (3, 50))
    weights, out_of_fold = ridge_on_centres(lambda rows: gram[rows].float(), gram.float(), y, fold, (500.0, 0.5))
    estimates = gram @ torch.linalg.solve(gram + 0.5 * torch.eye(N), y)
    torch.testing.assert_close(gram @ weights, estimates, atol=1e-2, rtol=0.0)
    for f in range(5):
        torch.testing.assert_close(out_of_fold[fold == f], refitted(gram, y, fold.eq(f), 0.5), atol=1e-2, rtol=0.0)


def test_what_cannot_be_estimated_stays_at_its_mean():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(400, 4, generator=generator), torch.randn(400, 2, generator=generator, dtype=torch.float64)
    gram, fold = (-torch.cdist(x, x).square()).exp(), torch.arange(400) % 5
    weights, out_of_fold = ridge_on_centres(lambda rows: gram[rows, :80], gram[:80, :80], y, fold, (1e-3,))
    assert not bool(weights.any()) and not bool(out_of_fold.any())


def test_no_two_centres_are_alike(monkeypatch: pytest.MonkeyPatch):
    assert set(draw_centres(ALIKE, 0).tolist()) == set(ALIKE.tolist())
    monkeypatch.setattr(ridge, "CENTRES", 20)
    assert len(draw_centres(ALIKE, 0)) == 20 and torch.equal(draw_centres(ALIKE, 0), draw_centres(ALIKE, 0))
