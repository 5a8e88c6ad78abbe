"""Estimates by LinUCB with disjoint linear models (Li et al., 2010, arXiv 1003.0146, algorithm 1), a contextual bandit.

N queries in the table, K experts, B queries in a batch, d features. An answer is a pair of score and cost, the latter
in units of the expert's mean cost.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from agents.estimators.base import Estimates, combine
from leeroo_env.table import ExpertTable

DIMENSIONS = 32
ALPHA = 1.0
RIDGES = (3.0, 10.0, 30.0, 100.0, 300.0)
LEARNING_RIDGE = 10.0
PASSES = 3
BATCH = 64
EXPECTED = (0.5, 1.0)  # prior score and relative cost: those of an expert that was never asked


def linucb_estimates(table: ExpertTable, seed: int = 0) -> Estimates:
    """Estimates of one ridge regression for each expert, fitted only to the answers that were asked for.

    In a few passes over the training queries, each is given, at a random price, to the expert with the highest upper
    confidence bound on score minus price times cost. The ridge, one for scores and one for costs, is that of least
    leave-one-out error on these answers. A training query is estimated without its own answers.
    """
    x = _features(table)
    usd = table.mean_cost_usd().clamp(min=1e-30)
    answers = torch.stack([table.scores, table.costs_usd / usd], dim=2) - torch.tensor(EXPECTED, device=x.device)
    asked = _ask(x, answers, table.rows("train"), usd, torch.Generator(x.device).manual_seed(seed))
    gram, moments = _sums(x, answers, asked)
    estimates, errors = [], []
    for ridge in RIDGES:
        out = _estimates(x, answers, asked, gram, moments, ridge)
        errors.append(((out - answers).square() * asked[..., None]).sum(dim=(0, 1)))
        estimates.append((out + torch.tensor(EXPECTED, device=x.device)).movedim(2, 1).flatten(1))
    score, cost = torch.stack(errors).argmin(dim=0).tolist()
    return Estimates.from_joint(combine(estimates, (score, cost)) * torch.cat([torch.ones_like(usd), usd]))


def _features(table: ExpertTable) -> Tensor:
    """Principal components of the embeddings and a 1; [N, d], of about unit length without the 1."""
    rows = table.rows("train")
    x = normalize(table.embeddings.float(), dim=1)
    x = x - x[rows].mean(dim=0)
    _, vectors = torch.linalg.eigh(x[rows].T @ x[rows])
    x = x @ vectors[:, -DIMENSIONS:]
    x = x / x[rows].square().sum(dim=1).mean().sqrt().clamp(min=1e-6)
    return pad(x, (0, 1), value=1.0)


def _ask(x: Tensor, answers: Tensor, rows: Tensor, usd: Tensor, generator: torch.Generator) -> Tensor:
    """Which expert is asked about which query; [N, K] bool."""
    asked = torch.zeros(answers.shape[:2], dtype=torch.bool, device=x.device)
    gram, moments = _sums(x[:0], answers[:0], asked[:0])
    low, high = 0.1 / usd.max(), 1.0 / usd.min()
    for _ in range(PASSES):
        order = rows[torch.randperm(len(rows), generator=generator, device=x.device)]
        for batch in order.split(BATCH):
            inverse = _inverse(gram, LEARNING_RIDGE)
            estimate = torch.einsum("bd,kdt->bkt", x[batch], inverse @ moments)
            width = torch.einsum("bd,kde,be->bk", x[batch], inverse, x[batch]).sqrt()
            price = low * (high / low) ** torch.rand(len(batch), 1, generator=generator, device=x.device)
            cost_usd = usd * (estimate[..., 1] + EXPECTED[1]).clamp(min=0)
            expert = (estimate[..., 0] + ALPHA * width - price * cost_usd).argmax(dim=1)
            new = torch.zeros_like(asked[batch]).scatter(1, expert[:, None], True) & ~asked[batch]
            asked[batch] |= new
            more = _sums(x[batch], answers[batch], new)
            gram, moments = gram + more[0], moments + more[1]
    return asked


def _sums(x: Tensor, answers: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the queries that each expert was asked: of x x' [K, d, d] and of x times answer [K, d, 2]."""
    of_expert = torch.einsum("nk,nd->knd", asked.float(), x)
    return of_expert.transpose(1, 2) @ x, of_expert.transpose(1, 2) @ answers.transpose(0, 1)


def _inverse(gram: Tensor, ridge: float) -> Tensor:
    penalty = torch.full(gram.shape[-1:], ridge, device=gram.device)
    penalty[-1] = 1.0  # of the constant
    return torch.linalg.inv(gram + penalty.diag())


def _estimates(x: Tensor, answers: Tensor, asked: Tensor, gram: Tensor, moments: Tensor, ridge: float) -> Tensor:
    """[N, K, 2]; leave-one-out where the expert was asked."""
    inverse = _inverse(gram, ridge)
    out = torch.einsum("nd,kdt->nkt", x, inverse @ moments)
    leverage = torch.einsum("nd,kde,ne->nk", x, inverse, x) * asked
    return out - ((answers - out) * (leverage / (1 - leverage))[..., None])
