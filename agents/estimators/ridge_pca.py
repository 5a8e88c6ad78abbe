"""Estimates by kernel ridge regression of principal components, on embeddings and the form of texts.

n training queries, K experts, D embedding, F features of a text, B queries to estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from agents.estimators.base import MAX_EXACT, Estimates, draw_folds, first_alike, targets_of
from agents.estimators.ridge import FOLDS, draw_centres, errors_left_out, ridge_on_centres
from agents.estimators.text_features import text_features, texts_of
from leeroo_env.table import ExpertTable

WIDTHS = (3.5, 35.0)  # of the kernels on embeddings: gamma x median squared distance; the second finds near duplicates
WEIGHTS = (0.3, 0.3)  # of the second of these kernels, and of that on text features; the first has weight 1
RIDGES = (1.0, 4.0, 16.0, 64.0)
CHUNK = 4_096


@dataclass(frozen=True)
class ComponentRidge:
    """Kernel ridge regression of all experts' scores and costs together, with a ridge for each principal component.

    Experts fail on the same queries, so scores are first rotated to their principal components: the first is the
    difficulty of queries, which embeddings predict well; the later ones, which tell experts apart, they predict less
    well. Each component has the ridge of least leave-one-out error; one that cannot be predicted stays at its mean.
    Costs are treated likewise.

    Attributes:
        centres: [m, D + F], embeddings of length 1 and standardised text features of the training queries, or of some.
        weights: [m, 2K], of the centres.
        offset: [2K], the mean scores and costs, to which estimates shrink.
        gammas: [2], of the two Gaussian kernels on embeddings.
        text_mean: [F], of the text features.
        text_scale: [F], their standard deviation, 0 for those that do not vary.
    """

    centres: Tensor
    weights: Tensor
    offset: Tensor
    gammas: Tensor
    text_mean: Tensor
    text_scale: Tensor

    def predict(self, embeddings: Tensor, texts: Sequence[str] | pa.ChunkedArray | None = None) -> Tensor:
        """[B, D] -> [B, 2K], scores and costs_usd. Without texts their form is taken to be average."""
        cosine = _unit(embeddings) @ self.centres[:, : embeddings.shape[1]].T
        return self.of_cosines(cosine, self.form_of(texts, len(embeddings)))

    def form_of(self, texts: Sequence[str] | pa.ChunkedArray | None, n: int) -> Tensor:
        """The standardised features of n texts, [n, F]; without texts those of an average one."""
        if texts is None:
            return torch.zeros(n, len(self.text_mean), device=self.text_mean.device)
        form = text_features(texts).to(self.text_mean.device)
        return (form - self.text_mean) * _inverse(self.text_scale)

    def of_cosines(self, cosine: Tensor, form: Tensor) -> Tensor:
        """[B, 2K] from the cosines of queries with the centres, [B, m], and the features `form_of` their texts."""
        similar = _kernel(cosine, form, self.centres[:, -form.shape[1] :], self.gammas.tolist())
        return self.offset + similar @ self.weights


def fit_components(
    table: ExpertTable, rows: Tensor, seed: int = 0, alike: Tensor | None = None
) -> tuple[ComponentRidge, Tensor]:
    """The estimator for the training queries `rows` [n], and their estimates [n, 2K] by models without them and their
    near duplicates: each alone is left out, or, of more than 6,000, a fold.

    Args:
        table: N queries.
        rows: [n] int64.
        seed: of folds and centres.
        alike: [n], which queries are nearly the same, as `first_alike` finds where not told.
    """
    alike = first_alike(table, rows) if alike is None else alike
    form = text_features(texts_of(table).take(pa.array(rows.cpu().numpy()))).to(table.device)
    text_mean, text_scale = form.mean(dim=0), form.std(dim=0)
    form = (form - text_mean) * _inverse(text_scale)
    exact = len(rows) <= MAX_EXACT
    centres = torch.arange(len(rows), device=table.device) if exact else draw_centres(alike, seed)
    embeddings, own = _unit(table.embeddings[rows[centres]]), form[centres]
    gammas = _gammas(embeddings)
    gram = _kernel(embeddings @ embeddings.T, own, own, gammas)
    targets = targets_of(table, rows)
    offset = targets.mean(dim=0)
    directions, components = _principal(targets - offset)
    if exact:
        weights, out_of_fold = _ridge(gram, components, alike)
    else:
        fold = draw_folds(alike, FOLDS, torch.Generator(table.device).manual_seed(seed))

        def kernel(places: Tensor) -> Tensor:
            return _kernel(_unit(table.embeddings[rows[places]]) @ embeddings.T, form[places], own, gammas)

        weights, out_of_fold = ridge_on_centres(kernel, gram, components, fold, RIDGES)
    model = ComponentRidge(
        centres=torch.cat([embeddings, own], dim=1),
        weights=(weights @ directions).float(),
        offset=offset.float(),
        gammas=embeddings.new_tensor(gammas),
        text_mean=text_mean,
        text_scale=text_scale,
    )
    return model, (offset + out_of_fold @ directions).float()


def ridge_pca_estimates(table: ExpertTable, seed: int = 0) -> Estimates:
    """Estimates by `fit_components`, those of training queries out of fold."""
    rows = table.rows("train")
    model, out_of_fold = fit_components(table, rows, seed)
    starts, texts = range(0, len(table), CHUNK), texts_of(table)
    estimates = torch.cat([model.predict(table.embeddings[i : i + CHUNK], texts.slice(i, CHUNK)) for i in starts])
    estimates[rows] = out_of_fold
    return Estimates.from_joint(estimates)


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.float(), dim=1)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale > 1e-6, 1 / scale, 0.0)


def _kernel(cosine: Tensor, form: Tensor, other: Tensor, gammas: list[float]) -> Tensor:
    """Weighted sum of Gaussian kernels, [B, n]: two on unit vectors with these cosines [B, n], one on the text features
    [B, F] and [n, F]."""
    half_distance = 1.0 - cosine
    similar = (half_distance * (-2 * gammas[0])).exp_()
    similar += half_distance.mul_(-2 * gammas[1]).exp_().mul_(WEIGHTS[0])
    product = form @ other.T
    product -= (form * form).sum(dim=1)[:, None] / 2 + (other * other).sum(dim=1) / 2
    return similar.add_(product.div_(form.shape[1]).exp_(), alpha=WEIGHTS[1])


def _gammas(centres: Tensor) -> list[float]:
    """Widths of the kernels, relative to the median distance of queries, which differs by encoder."""
    some = centres[torch.linspace(0, len(centres) - 1, min(len(centres), 1000)).long()]
    median = float((2 - 2 * some @ some.T).median().clamp(min=1e-6))
    return [width / median for width in WIDTHS]


def _principal(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Centred targets [n, 2K] -> directions [2K, 2K] and components [n, 2K], whose product they are.

    Scores and costs are rotated separately, costs in units of their standard deviations.
    """
    score, cost_usd = targets.chunk(2, dim=1)
    scale = cost_usd.std(dim=0).clamp(min=1e-30)
    turn_score, turn_cost = (torch.linalg.eigh(part.T @ part)[1] for part in (score, cost_usd / scale))
    directions = torch.block_diag(turn_score.T, turn_cost.T * scale)
    return directions, torch.cat([score @ turn_score, (cost_usd / scale) @ turn_cost], dim=1)


def _ridge(gram: Tensor, targets: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [n, 2K] and leave-one-out estimates [n, 2K] of each target, at the ridge of least leave-one-out error;
    near duplicates, by `alike` [n], are left out together."""
    least = targets.square().sum(dim=0)
    weights, leave_one_out = torch.zeros_like(targets), torch.zeros_like(targets)
    for ridge in RIDGES:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), device=gram.device)))
        alpha = (inverse @ targets.float()).double()
        error = errors_left_out(inverse, alpha, alike)
        squares = error.square().sum(dim=0)
        better = squares < least
        least = torch.where(better, squares, least)
        weights = torch.where(better, alpha, weights)
        leave_one_out = torch.where(better, targets - error, leave_one_out)
    return weights, leave_one_out
