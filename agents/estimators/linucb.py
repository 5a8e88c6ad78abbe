"""Estimates by LinUCB with disjoint linear models (Li et al., 2010, arXiv 1003.0146, algorithm 1), a contextual bandit.

N queries in the table, K experts, B queries in a batch, d features. An answer is a pair of score and cost, the latter
in units of the expert's mean cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
ROWS = 16_384  # at a time; principal components are of no more
EXPECTED = (0.5, 1.0)  # prior score and relative cost: those of an expert that was never asked


@dataclass(frozen=True)
class LinUCB:
    """One ridge regression for each expert, on principal components of the embedding.

    Attributes:
        mean: [D], of the embeddings of the training queries, of length 1.
        components: [D, d - 1], directions.
        length: of the components' vectors, on average.
        weights: [K, d, 2], of scores and of relative costs, the last of a constant.
        usd: [K], what relative costs are multiplied with.
    """

    mean: Tensor
    components: Tensor
    length: Tensor
    weights: Tensor
    usd: Tensor

    def predict(self, embeddings: Tensor) -> Tensor:
        """[B, D] -> [B, 2K]."""
        return self.of_features(self.features(embeddings))

    def features(self, embeddings: Tensor) -> Tensor:
        """Principal components of embeddings [B, D] and a 1; [B, d], of about unit length without the 1."""
        parts = [(normalize(x.float(), dim=1) - self.mean) @ self.components for x in embeddings.split(ROWS)]
        return pad(torch.cat(parts) / self.length, (0, 1), value=1.0)

    def of_features(self, x: Tensor) -> Tensor:
        """[B, d] -> [B, 2K]."""
        out = torch.einsum("nd,kdt->nkt", x, self.weights)
        return self.of_answers(out)

    def of_answers(self, answers: Tensor) -> Tensor:
        """Scores and costs_usd [B, 2K] from answers less what is expected [B, K, 2]."""
        joint = (answers + torch.tensor(EXPECTED, device=answers.device)).movedim(2, 1).flatten(1)
        return joint * torch.cat([torch.ones_like(self.usd), self.usd])


def fit_linucb(table: ExpertTable, seed: int = 0) -> tuple[LinUCB, Tensor]:
    """The regressions, fitted only to the answers that were asked for, and estimates of all rows [N, 2K], those of
    training queries without their own answers.

    In a few passes over the training queries, each is given, at a random price, to the expert with the highest upper
    confidence bound on score minus price times cost. The ridge, one for scores and one for costs, is that of least
    leave-one-out error on these answers.
    """
    usd = table.mean_cost_usd().clamp(min=1e-30)
    model = _principal(table, usd)
    x = model.features(table.embeddings)
    answers = torch.stack([table.scores, table.costs_usd / usd], dim=2) - torch.tensor(EXPECTED, device=x.device)
    asked = _ask(x, answers, table.rows("train"), usd, torch.Generator(x.device).manual_seed(seed))
    gram, moments = _sums(x, answers, asked)
    estimates, errors, weights = [], [], []
    for ridge in RIDGES:
        out, weight = _estimates(x, answers, asked, gram, moments, ridge)
        errors.append(((out - answers).square() * asked[..., None]).sum(dim=(0, 1)))
        estimates.append(model.of_answers(out))
        weights.append(weight)
    score, cost = torch.stack(errors).argmin(dim=0).tolist()
    chosen = torch.stack([weights[score][..., 0], weights[cost][..., 1]], dim=2)
    return replace(model, weights=chosen), combine(estimates, (score, cost))


def linucb_estimates(table: ExpertTable, seed: int = 0) -> Estimates:
    """Estimates by `fit_linucb`."""
    return Estimates.from_joint(fit_linucb(table, seed)[1])


def _principal(table: ExpertTable, usd: Tensor) -> LinUCB:
    """The model's features, without weights yet."""
    rows = table.rows("train")
    x = normalize(table.embeddings[rows[:: -(-len(rows) // ROWS)]].float(), dim=1)
    mean = x.mean(dim=0)
    x = x - mean
    _, vectors = torch.linalg.eigh(x.T @ x)
    components = vectors[:, -DIMENSIONS:]
    length = (x @ components).square().sum(dim=1).mean().sqrt().clamp(min=1e-6)
    return LinUCB(mean, components, length, x.new_zeros(0), usd)


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
    gram, moments = [], []
    for part, answer, of in zip(x.split(ROWS), answers.split(ROWS), asked.split(ROWS), strict=True):
        of_expert = torch.einsum("nk,nd->knd", of.float(), part)
        gram.append(of_expert.transpose(1, 2) @ part)
        moments.append(of_expert.transpose(1, 2) @ answer.transpose(0, 1))
    return sum(gram[1:], gram[0]), sum(moments[1:], moments[0])


def _inverse(gram: Tensor, ridge: float) -> Tensor:
    penalty = torch.full(gram.shape[-1:], ridge, device=gram.device)
    penalty[-1] = 1.0  # of the constant
    return torch.linalg.inv(gram + penalty.diag())


def _estimates(
    x: Tensor, answers: Tensor, asked: Tensor, gram: Tensor, moments: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """Answers [N, K, 2], leave-one-out where the expert was asked, and the weights [K, d, 2]."""
    inverse = _inverse(gram, ridge)
    weights = inverse @ moments
    parts = [
        (torch.einsum("nd,kdt->nkt", y, weights), torch.einsum("nd,kde,ne->nk", y, inverse, y)) for y in x.split(ROWS)
    ]
    out, leverage = (torch.cat(part) for part in zip(*parts, strict=True))
    leverage = leverage * asked
    return out - ((answers - out) * (leverage / (1 - leverage))[..., None]), weights
