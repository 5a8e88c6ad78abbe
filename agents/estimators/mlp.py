"""Estimates by small networks on the embedding: an ensemble of perceptrons over five folds, trained at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.estimators.base import (
    MAX_EXACT,
    Estimates,
    draw_folds,
    first_alike,
    mean_and_scale,
    targets_of,
    with_out_of_fold,
)
from leeroo_env.table import ExpertTable

FOLDS = 5
MEMBERS = 2  # networks a fold
HIDDEN = 128
EPOCHS = 10
BATCH = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
DROPOUT = 0.5
LARGE = 4  # times as large a batch with more than 6,000 queries, which take fewer epochs
MOMENTS = 16_384
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
    y, y_scale = ((targets - mean) / scale).float(), scale.nan_to_num(posinf=0.0).float()
    some = rows[:: -(-len(rows) // MOMENTS)]  # mean and scale of inputs need not be those of all
    x = table.embeddings[some].float()
    x_mean, x_scale = x.mean(dim=0), x.std(dim=0, correction=0)
    x_scale = x_scale.where(x_scale > 1e-6, torch.inf)
    fold = draw_folds(first_alike(table, rows), FOLDS, generator)
    if len(rows) <= MAX_EXACT:
        x = (x - x_mean) / x_scale
        parameters = _train(lambda places: x[places], y, fold, generator, EPOCHS, BATCH, LEARNING_RATE)
    else:
        epochs = max(1, round(EPOCHS * (MAX_EXACT / len(rows)) ** 0.25))

        def inputs(places: Tensor) -> Tensor:
            return (table.embeddings[rows[places]].float() - x_mean) / x_scale

        parameters = _train(inputs, y, fold, generator, epochs, LARGE * BATCH, LARGE**0.5 * LEARNING_RATE)
    hidden, bias, out, out_bias = parameters
    networks = Networks(hidden, bias, out, out_bias, x_mean, x_scale, mean.float(), y_scale)
    out_of_fold = torch.empty_like(y)
    for places in torch.arange(len(rows), device=table.device).split(MOMENTS):
        out_of_fold[places] = networks.by_fold(table.embeddings[rows[places]])[fold[places], places - places[0]]
    return networks, out_of_fold


def mlp_estimates(table: ExpertTable, seed: int = 0) -> Estimates:
    """Estimates of ten networks; those of a training query are of the two trained without its fold."""
    rows = table.rows("train")
    networks, out_of_fold = fit_networks(table, rows, seed)
    return with_out_of_fold(table, rows, out_of_fold, networks.predict)


def _train(
    inputs: Callable[[Tensor], Tensor],
    y: Tensor,
    fold: Tensor,
    generator: torch.Generator,
    epochs: int,
    batch: int,
    learning_rate: float,
) -> list[Tensor]:
    """Fits all networks at once to the inputs [..., D] of places among n queries and to y [n, 2K], number i without the
    queries of fold i % 5."""
    smallest = len(fold) - int(fold.bincount().max())  # as many queries for each
    used = torch.stack([torch.nonzero(fold != i).squeeze(1)[:smallest] for i in range(FOLDS)]).repeat(MEMBERS, 1)
    parameters = _initial(inputs(used[:1, 0]).shape[1], y.shape[1], generator)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    batches = -(-used.shape[1] // batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * batches)
    for _ in range(epochs):
        order = torch.rand(used.shape, generator=generator, device=y.device).argsort(dim=1)
        for rows in used.gather(1, order).tensor_split(batches, dim=1):
            loss = (_forward(parameters, inputs(rows), generator) - y[rows]).square().mean() * len(used)
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
