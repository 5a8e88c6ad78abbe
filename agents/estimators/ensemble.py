"""The agent's own estimates: the mean of kernel ridge regression, nearest neighbours and small networks.

n training queries, K experts, D embedding, B queries to estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from agents.estimators.base import CHUNK, Estimates
from agents.estimators.knn import Neighbours, fit_neighbours
from agents.estimators.mlp import Networks, fit_networks
from agents.estimators.models import Predicts
from agents.estimators.ridge_pca import ComponentRidge, fit_components
from agents.estimators.text_features import texts_of
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable

SHARES = (0.5, 0.25, 0.25)  # of ridge, neighbours, networks; by cross-validation on train and val of two tables
ROWS = 128  # whose cosines with all training queries stay in the processor's cache


@dataclass(frozen=True)
class Predictor:
    """A weighted mean of three estimators, whose errors differ.

    Attributes:
        ridge: has weight 1/2.
        neighbours: has weight 1/4; its references are the embeddings of the ridge's centres, where these are all
            training queries.
        networks: has weight 1/4.
        turn: [2K', 2K], maps estimates for the K' experts of the fit to all K experts; see `with_expert`.
        shift: [2K], added to that.
        rows: [n] int64, the table's rows of the training queries.
        out_of_fold: estimates of the n training queries by models that were not fitted to them; stored as [n, 2K].
    """

    ridge: ComponentRidge
    neighbours: Neighbours
    networks: Networks
    turn: Tensor
    shift: Tensor
    rows: Tensor
    out_of_fold: Estimates

    @property
    def one_set(self) -> bool:
        """Whether the ridge's centres and the neighbours' references are the same queries."""
        return len(self.ridge.centres) == len(self.neighbours.references)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to store; embeddings, the largest, in half precision and only once."""
        parts = {name: getattr(self, name) for name in ("ridge", "neighbours", "networks")}
        stored = {f"{name}.{f.name}": getattr(part, f.name) for name, part in parts.items() for f in fields(part)}
        stored = {name: value for name, value in stored.items() if value is not None}
        if self.one_set:
            del stored["neighbours.references"]
        own = {name: getattr(self, name) for name in ("turn", "shift", "rows")}
        return {**stored, **own, "out_of_fold": self.out_of_fold.joint(), "ridge.centres": self.ridge.centres.half()}

    @classmethod
    def from_tensors(cls, stored: dict[str, Tensor]) -> Predictor:
        """The predictor from its `tensors`. Raises KeyError."""

        def part(kind: type, name: str, **given: Tensor | None) -> dict[str, Any]:
            return {f.name: given[f.name] if f.name in given else stored[f"{name}.{f.name}"] for f in fields(kind)}

        centres = stored["ridge.centres"].float()
        networks = Networks(**part(Networks, "networks"))
        references = torch.nn.functional.normalize(centres[:, : len(networks.x_mean)], dim=1)
        centres[:, : len(networks.x_mean)] = references  # half precision has changed their lengths
        references = stored.get("neighbours.references", references)
        neighbours = part(Neighbours, "neighbours", references=references, cells=stored.get("neighbours.cells"))
        return cls(
            ridge=ComponentRidge(**part(ComponentRidge, "ridge", centres=centres)),
            neighbours=Neighbours(**neighbours),
            networks=networks,
            **{name: stored[name] for name in ("turn", "shift", "rows")},
            out_of_fold=Estimates.from_joint(stored["out_of_fold"]),
        )

    def predict(
        self,
        embeddings: Tensor,
        texts: Sequence[str] | pa.ChunkedArray | None = None,
        domains: Sequence[str] | None = None,
    ) -> Estimates:
        """Estimates for queries [B, D]. Without texts their form is taken to be average; domains are not used."""
        forms = self.ridge.form_of(texts, len(embeddings))
        units = torch.nn.functional.normalize(embeddings.float(), dim=1)
        parts = []
        for unit, form in zip(units.split(ROWS), forms.split(ROWS), strict=True):
            if self.one_set:
                cosine = unit @ self.neighbours.references.T  # most of the work
                parts.append((self.ridge.of_cosines(cosine, form), self.neighbours.of_cosines(cosine)))
            else:
                cosine = unit @ self.ridge.centres[:, : unit.shape[1]].T
                parts.append((self.ridge.of_cosines(cosine, form), self.neighbours.predict(unit)))
        ridge, neighbours = (torch.cat(part) for part in zip(*parts, strict=True))
        mixed = _mixed((ridge, neighbours, self.networks.predict(embeddings)))
        return Estimates.from_joint(mixed @ self.turn + self.shift)

    def out_of_sample(self, embeddings: Tensor, texts: Sequence[str] | None = None) -> Estimates:
        """As `predict`, but with the out-of-fold estimates of queries that are among the training queries."""
        x = torch.nn.functional.normalize(embeddings.float(), dim=1)
        similarity, nearest = self.neighbours.nearest(x)
        known = (similarity > 1 - 1e-4)[:, None]  # stored embeddings are in half precision
        own, other = self.out_of_fold[nearest], self.predict(embeddings, texts)
        return Estimates(torch.where(known, own.score, other.score), torch.where(known, own.cost_usd, other.cost_usd))

    def with_expert(
        self, embeddings: Tensor, scores: Tensor, costs_usd: Tensor, texts: Sequence[str] | None = None
    ) -> Predictor:
        """The predictor with one more expert, the last, from its scores [m] and costs_usd [m] on queries [m, D].

        These are regressed on the estimates for the other experts, so a few hundred queries are enough: only the
        resemblance to the others has to be learnt.
        """
        known = self.out_of_sample(embeddings, texts).joint()
        k = known.shape[1] // 2
        grow = torch.zeros(2 * k, 2 * k + 2, device=known.device)
        bias = torch.zeros(2 * k + 2, device=known.device)
        for old, new, y in ((slice(0, k), k, scores), (slice(k, 2 * k), 2 * k + 1, costs_usd)):
            bias[new], grow[old, new] = _regress(known[:, old], y)
        grow[:k, :k] = grow[k:, k + 1 : -1] = torch.eye(k, device=known.device)
        return replace(
            self,
            turn=self.turn @ grow,
            shift=self.shift @ grow + bias,
            out_of_fold=Estimates.from_joint(self.out_of_fold.joint() @ grow + bias),
        )


def fit_predictor(table: ExpertTable, seed: int = 0) -> Predictor:
    """Fits to the training split. Raises InputError if it has only one query."""
    rows = training_rows(table)
    ridge, neighbours = fit_components(table, rows, seed), fit_neighbours(table, rows, seed)
    return predictor_of(rows, ridge, neighbours, fit_networks(table, rows, seed))


def training_rows(table: ExpertTable) -> Tensor:
    """The rows [n] to fit to. Raises InputError if there is only one."""
    rows = table.rows("train")
    if len(rows) < 2:
        raise InputError(f"{table.name}: 1 query in the train split; estimates need 2 or more")
    return rows


def predictor_of(
    rows: Tensor,
    ridge: tuple[ComponentRidge, Tensor],
    neighbours: tuple[Neighbours, Tensor],
    networks: tuple[Networks, Tensor],
) -> Predictor:
    """The predictor of three estimators that were fitted to the `rows` [n], each with out-of-fold estimates [n, 2K]."""
    out_of_fold = _mixed((ridge[1], neighbours[1], networks[1]))
    return Predictor(
        ridge=ridge[0],
        neighbours=neighbours[0],
        networks=networks[0],
        turn=torch.eye(out_of_fold.shape[1], device=rows.device),
        shift=out_of_fold.new_zeros(out_of_fold.shape[1]),
        rows=rows,
        out_of_fold=Estimates.from_joint(out_of_fold),
    )


def predict_all(predictor: Predicts, table: ExpertTable) -> Estimates:
    """Estimates for every row of the table, as if none were a training query."""
    texts, domains = texts_of(table), table.queries["domain"].to_pylist()
    starts = range(0, len(table), CHUNK)
    parts = [
        predictor.predict(table.embeddings[i : i + CHUNK], texts.slice(i, CHUNK), domains[i : i + CHUNK])
        for i in starts
    ]
    return Estimates.concatenate(parts)


def table_estimates(table: ExpertTable, predictor: Predictor) -> Estimates:
    """Estimates for every row of the table; those of the training rows are out of fold."""
    if predictor.one_set:
        estimates = predict_all(predictor, table).joint()
    else:
        others = torch.ones(len(table), dtype=torch.bool, device=table.device)
        others[predictor.rows] = False
        estimates = predictor.out_of_fold.score.new_empty(len(table), 2 * len(table.experts))
        texts = texts_of(table)
        for rows in others.nonzero().squeeze(1).split(CHUNK):
            some = texts.take(pa.array(rows.cpu().numpy()))
            estimates[rows] = predictor.predict(table.embeddings[rows], some).joint()
    estimates[predictor.rows] = predictor.out_of_fold.joint()
    return Estimates.from_joint(estimates)


def _mixed(parts: Sequence[Tensor]) -> Tensor:
    return sum(share * part for share, part in zip(SHARES, parts, strict=True))  # type: ignore[return-value]


def _regress(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Intercept and slopes [K] of ridge regression of y [m] on x [m, K], at the ridge of least leave-one-out error."""
    x, y = x.double(), y.double()
    scale, mean = x.std(dim=0).clamp(min=1e-30), x.mean(dim=0)
    u, s, v = torch.linalg.svd((x - mean) / scale, full_matrices=False)
    centred = y - y.mean()
    least, slopes = torch.inf, torch.zeros_like(mean)
    for ridge in len(x) * torch.logspace(-3, 3, 13):
        shrunk = s.square() / (s.square() + ridge)
        error = (centred - u @ (shrunk * (u.T @ centred))) / (1 - u.square() @ shrunk - 1 / len(x))
        if float(error.square().sum()) < least:
            least, slopes = float(error.square().sum()), v.T @ (shrunk / s.clamp(min=1e-12) * (u.T @ centred)) / scale
    return (y.mean() - mean @ slopes).float(), slopes.float()
