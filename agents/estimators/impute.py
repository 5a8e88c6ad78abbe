"""Imputation: fills in the scores and costs of a table in which not every expert has answered every query.

Missing values are estimated from each expert's own answers, so that everything that learns from a complete table can
learn from the result: an imputed score of 0.7 stands for an answer that is right in 7 of 10 cases.

N queries, K experts, D embedding.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from agents.estimators.ridge_pca import fit_components
from agents.estimators.text_features import texts_of
from leeroo_env import ExpertTable, InputError
from leeroo_env.table import SPLITS, TableInfo

MIN_ANSWERS = 2  # of an expert, on the training split


def partial_table(
    info: TableInfo, queries: pa.Table, answers: pa.Table, embeddings: np.ndarray
) -> tuple[ExpertTable, Tensor]:
    """A table with missing answers, and which of them are present, [N, K] bool; missing ones score and cost 0.

    Args:
        info, queries, answers, embeddings: the contents of a table directory; every query has a split.
    """
    experts = [expert.name for expert in info.experts]
    row_of = {query_id: row for row, query_id in enumerate(queries["query_id"].to_pylist())}
    column_of = {name: column for column, name in enumerate(experts)}
    scores, costs_usd = np.zeros((len(queries), len(experts))), np.zeros((len(queries), len(experts)))
    present = np.zeros(scores.shape, dtype=bool)
    where = (
        np.array([row_of[query_id] for query_id in answers["query_id"].to_pylist()], dtype=np.int64),
        np.array([column_of[name] for name in answers["expert"].to_pylist()], dtype=np.int64),
    )
    scores[where], costs_usd[where], present[where] = answers["score"].to_numpy(), answers["cost_usd"].to_numpy(), True
    table = ExpertTable(
        info=info,
        queries=queries,
        answers=answers,
        embeddings=torch.from_numpy(embeddings),
        scores=torch.from_numpy(scores).float(),
        costs_usd=torch.from_numpy(costs_usd).float(),
        split=torch.tensor([SPLITS.index(name) for name in queries["split"].to_pylist()], dtype=torch.int8),
        answer_ids=torch.full(scores.shape, -1, dtype=torch.int16),
    )
    return table, torch.from_numpy(present)


def fill_missing(table: ExpertTable, present: Tensor, seed: int = 0) -> ExpertTable:
    """The table with the missing answers to training queries imputed; val and test stay as they are.

    Each expert's are imputed by ridge regression on its own answers (`agents.estimators.ridge_pca`). Out-of-fold
    estimates fitted to the result depend on a query's own answers only through values imputed for other queries.

    Args:
        table: N queries; values are ignored where `present` is False.
        present: [N, K] bool.
        seed: of centres and folds where an expert has given more than 6,000 answers.

    Raises:
        InputError: an expert has answered fewer than two training queries.
    """
    train = table.split == SPLITS.index("train")
    scores, costs_usd = table.scores.clone(), table.costs_usd.clone()
    for k, name in enumerate(table.experts):
        rows = torch.nonzero(train & present[:, k]).squeeze(1)
        if len(rows) < MIN_ANSWERS:
            raise InputError(f"expert {name}: has answered {len(rows)} training queries; estimates need 2 or more")
        missing = torch.nonzero(train & ~present[:, k]).squeeze(1)
        if len(missing) == 0:
            continue
        model, _ = fit_components(table.select([name]), rows, seed, torch.arange(len(rows)))
        texts = texts_of(table).take(pa.array(missing.cpu().numpy()))
        score, cost_usd = model.predict(table.embeddings[missing], texts).unbind(dim=1)
        scores[missing, k], costs_usd[missing, k] = score.clamp(0, 1), cost_usd.clamp(min=0)
    return replace(table, scores=scores, costs_usd=costs_usd)
