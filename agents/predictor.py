"""What each expert is likely to score and cost on a query, estimated from its embedding.

N training queries, K experts, D embedding, B queries to estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leeroo_env.table import ExpertTable

GAMMA = 2.0
RIDGE = 10.0
MAX_CENTRES = 6_000


@dataclass(frozen=True)
class Predictor:
    """Kernel ridge regression with a Gaussian kernel on the unit sphere.

    Attributes:
        centres: [n, D], the training queries' embeddings, of length 1.
        weights: [n, 2K], of the centres.
        offset: [2K], the mean scores and costs that estimates shrink to.
        rows: [n] int64, the table's rows of the centres.
        out_of_fold: [n, 2K], what the model without a query would have estimated for it: scores, then costs.
    """

    centres: Tensor
    weights: Tensor
    offset: Tensor
    rows: Tensor
    out_of_fold: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """What predicting needs, to be stored; embeddings in half precision."""
        return {"centres": self.centres.half(), "weights": self.weights, "offset": self.offset}

    @classmethod
    def from_tensors(cls, stored: dict[str, Tensor]) -> Predictor:
        """A predictor that predicts, without the estimates of its training queries. Raises KeyError."""
        weights = stored["weights"]
        return cls(stored["centres"].float(), weights, stored["offset"], torch.empty(0, dtype=torch.int64), weights[:0])

    def predict(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Estimated scores [B, K] and costs_usd [B, K] of queries [B, D]."""
        estimates = self.offset + _kernel(_unit(embeddings), self.centres) @ self.weights
        return split_estimates(estimates)


def split_estimates(estimates: Tensor) -> tuple[Tensor, Tensor]:
    """[n, 2K] -> scores [n, K] and costs_usd [n, K], these not negative."""
    score, cost_usd = estimates.chunk(2, dim=1)
    return score, cost_usd.clamp(min=0)


def fit_predictor(table: ExpertTable, seed: int = 0) -> Predictor:
    """Fits scores and costs on the training split, on at most 6,000 queries of it.

    The estimates of the training queries themselves are those of leaving one out, which for ridge regression follow
    from one fit: y_i - alpha_i / (K + ridge)^-1_ii (Rasmussen and Williams, 2006, section 5.4.2).
    """
    rows = table.rows("train").cpu()
    if len(rows) > MAX_CENTRES:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:MAX_CENTRES].sort()[0]]
    rows = rows.to(table.device)
    centres = _unit(table.embeddings[rows].float())
    targets = torch.cat([table.scores[rows], table.costs_usd[rows]], dim=1).double()
    offset = targets.mean(dim=0)
    scale = targets.std(dim=0).clamp(min=1e-30)  # dollars and scores differ by orders of magnitude
    gram = _kernel(centres, centres)
    gram.diagonal().add_(RIDGE)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weights = inverse @ ((targets - offset) / scale).float()
    left_out = targets - (weights / inverse.diagonal()[:, None]).double() * scale
    return Predictor(centres, (weights * scale).float(), offset.float(), rows, left_out.float())


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.float(), dim=1)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """exp(-gamma |x - y|^2) for vectors of length 1, [B, n]."""
    return (x @ y.T).sub_(1.0).mul_(2 * GAMMA).exp_()
