"""Estimates by small networks on the embedding: an ensemble of perceptrons over five folds, trained at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.estimators.base import Estimates, mean_and_scale, targets_of
from leeroo_env.table import ExpertTable

FOLDS = 5
MEMBERS = 2  # networks a fold
HIDDEN = 128
EPOCHS = 10
BATCH = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
DROPOUT = 0.5
CHUNK = 2_048


@dataclass(frozen=True)
class Networks:
    """The mean of ten networks with one hidden layer.

    Attributes:
        hidden, bias, out, out_bias: [10, D, H], [10, 1, H], [10, H, 2K], [10, 1, 2K].
        x_mean, x_scale: [D], of the embeddings.
        y_mean, y_scale: [2K], of scores and costs.
    """

    hidden: Tensor
    bias: Tensor
    out: Tensor
    out_bias: Tensor
    x_mean: Tensor
    x_scale: Tensor
    y_mean: Tensor
    y_scale: Tensor

    def predict(self, embeddings: Tensor) -> Tensor:
        """[B, D] -> [B, 2K]."""
        return self.by_fold(embeddings).mean(dim=0)

    def by_fold(self, embeddings: Tensor) -> Tensor:
        """The mean of the networks trained without each fold, [5, B, 2K]."""
        parameters = [self.hidden, self.bias, self.out, self.out_bias]
        x = (embeddings.float() - self.x_mean) / self.x_scale
        each = torch.cat([_forward(parameters, part.expand(FOLDS * MEMBERS, -1, -1)) for part in x.split(CHUNK)], dim=1)
        return self.y_mean + each.unflatten(0, (MEMBERS, FOLDS)).mean(dim=0) * self.y_scale


def fit_networks(table: ExpertTable, rows: Tensor, seed: int = 0) -> tuple[Networks, Tensor]:
    """Ten networks, two for each fold of the training queries `rows` [n] that they are trained without, and the
    out-of-fold estimates [n, 2K]. Sizes were selected by the score of priced routing with such estimates."""
    generator = torch.Generator(table.device).manual_seed(seed)
    targets = targets_of(table, rows)
    mean, scale = mean_and_scale(targets)
    x = table.embeddings[rows].float()
    x_mean, x_scale = x.mean(dim=0), x.std(dim=0, correction=0)
    x_scale = x_scale.where(x_scale > 1e-6, torch.inf)
    fold = torch.randperm(len(rows), generator=generator, device=table.device) % FOLDS
    parameters = _train((x - x_mean) / x_scale, ((targets - mean) / scale).float(), fold, generator)
    hidden, bias, out, out_bias = parameters
    y_scale = scale.nan_to_num(posinf=0.0).float()
    networks = Networks(hidden, bias, out, out_bias, x_mean, x_scale, mean.float(), y_scale)
    return networks, networks.by_fold(x)[fold, torch.arange(len(rows), device=table.device)]


def mlp_estimates(table: ExpertTable, seed: int = 0) -> Estimates:
    """Estimates of ten networks; those of a training query are of the two trained without its fold."""
    rows = table.rows("train")
    networks, out_of_fold = fit_networks(table, rows, seed)
    estimates = networks.predict(table.embeddings)
    estimates[rows] = out_of_fold
    return Estimates.from_joint(estimates)


def _train(x: Tensor, y: Tensor, fold: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Fits all networks at once to x [n, D] and y [n, 2K], number i without the queries of fold i % 5."""
    smallest = len(fold) - int((fold == 0).sum())  # as many queries for each; fold 0 is the largest
    used = torch.stack([torch.nonzero(fold != i).squeeze(1)[:smallest] for i in range(FOLDS)]).repeat(MEMBERS, 1)
    parameters = _initial(x.shape[1], y.shape[1], generator)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = -(-used.shape[1] // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, EPOCHS * batches)
    for _ in range(EPOCHS):
        order = torch.rand(used.shape, generator=generator, device=x.device).argsort(dim=1)
        for rows in used.gather(1, order).tensor_split(batches, dim=1):
            loss = (_forward(parameters, x[rows], generator) - y[rows]).square().mean() * len(used)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return [parameter.detach() for parameter in parameters]


def _initial(n_in: int, n_out: int, generator: torch.Generator) -> list[Tensor]:
    """Weights and biases of all networks; the output starts at 0, the mean."""
    device = generator.device
    hidden = torch.randn(FOLDS * MEMBERS, n_in, HIDDEN, generator=generator, device=device) / n_in**0.5
    n = FOLDS * MEMBERS
    shapes = (n, 1, HIDDEN), (n, HIDDEN, n_out), (n, 1, n_out)
    return [hidden.requires_grad_(), *(torch.zeros(shape, device=device, requires_grad=True) for shape in shapes)]


def _forward(parameters: list[Tensor], x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """[networks, b, D] -> [networks, b, 2K]; with a generator, dropout is on."""
    weight, bias, out_weight, out_bias = parameters
    hidden = torch.nn.functional.relu(torch.baddbmm(bias, x, weight))
    if generator is not None:
        kept = torch.empty_like(hidden).bernoulli_(1 - DROPOUT, generator=generator)
        hidden = hidden * kept / (1 - DROPOUT)
    return torch.baddbmm(out_bias, hidden, out_weight)
