"""Estimates keep scores and costs together, whatever is done with them."""

from __future__ import annotations

import torch

from agents.estimators.base import Estimates, sample_rows

JOINT = torch.tensor([[0.5, 1.2, 3.0, -1.0], [-0.1, 0.3, 2.0, 4.0], [0.9, 0.8, 0.0, 5.0]])  # K = 2


def test_estimates_from_one_tensor_and_back():
    estimates = Estimates.from_joint(JOINT)
    assert torch.equal(estimates.score, JOINT[:, :2]) and len(estimates) == 3
    assert torch.equal(estimates.cost_usd, JOINT[:, 2:].clamp(min=0)), "no cost is negative"
    assert torch.equal(Estimates.from_joint(estimates.joint()).joint(), estimates.joint())


def test_rows_and_parts_of_estimates():
    estimates = Estimates.from_joint(JOINT)
    rows = torch.tensor([2, 0])
    assert torch.equal(estimates[rows].joint(), estimates.joint()[rows])
    assert torch.equal(Estimates.concatenate([estimates[:1], estimates[1:]]).joint(), estimates.joint())


def test_reliability_is_a_probability():
    assert torch.equal(Estimates.from_joint(JOINT).reliability(), JOINT[:, :2].clamp(0, 1))


def test_a_sample_of_rows_is_drawn_in_order_and_the_same_for_a_seed():
    rows = torch.arange(0, 200, 2)
    assert torch.equal(sample_rows(rows, 100, 0), rows)
    some = sample_rows(rows, 30, 0)
    assert len(some) == 30 and bool((some.diff() > 0).all()) and set(some.tolist()) < set(rows.tolist())
    assert torch.equal(some, sample_rows(rows, 30, 0)) and not torch.equal(some, sample_rows(rows, 30, 1))
