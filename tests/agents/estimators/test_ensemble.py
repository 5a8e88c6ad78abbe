"""Estimates that did not see their own query, and survive being stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from agents.estimators import ridge_pca_estimates
from agents.estimators.ensemble import Predictor, fit_predictor, table_estimates
from agents.estimators.text_features import text_features
from leeroo_env import ExpertTable
from leeroo_env.builtin import resolve
from tests.conftest import random_table


def test_a_training_query_is_estimated_without_its_own_answers():
    """Turning one query's answers upside down moves the others' estimates but not, beyond the means, its own."""
    table = random_table(n=240)
    row = int(table.rows("train")[7])
    scores = table.scores.clone()
    scores[row] = 1 - scores[row].round()
    changed = replace(table, scores=scores)
    before, after = (ridge_pca_estimates(t).score for t in (table, changed))
    moved = (after - before).abs().mean(dim=1)
    by_itself = ridge_pca_estimates(replace(changed, split=_as_test(table, row))).score[row]
    assert moved[row] < 0.05 and (after[row] - by_itself).abs().max() < 0.1


def _as_test(table: ExpertTable, row: int) -> torch.Tensor:
    split = table.split.clone()
    split[row] = 2
    return split


def test_estimates_are_better_than_means_on_real_answers():
    table = resolve("tiny")
    rows = table.rows("test")
    estimates = table_estimates(table, fit_predictor(table))[rows]
    for estimate, truth, mean in (
        (estimates.score, table.scores[rows], table.mean_score()),
        (estimates.cost_usd, table.costs_usd[rows], table.mean_cost_usd()),
    ):
        assert ((estimate - truth) ** 2).mean() < 0.8 * ((mean - truth) ** 2).mean()


def test_large_tables_are_fitted_to_all_and_stored(monkeypatch: pytest.MonkeyPatch):
    for module in ("ridge_pca", "knn", "mlp", "base"):
        monkeypatch.setattr(f"agents.estimators.{module}.MAX_EXACT", 30)
    monkeypatch.setattr("agents.estimators.ridge.CENTRES", 40)
    table = random_table(n=300)
    predictor = fit_predictor(table, seed=1)
    assert torch.equal(predictor.rows, table.rows("train")) and len(predictor.ridge.centres) == 40
    estimates = table_estimates(table, predictor).joint()
    assert estimates.shape == (300, 8) and estimates.isfinite().all()
    x, again = table.embeddings[table.rows("test")], Predictor.from_tensors(predictor.tensors())
    torch.testing.assert_close(again.predict(x).joint(), predictor.predict(x).joint(), rtol=0.02, atol=2e-3)
    rows = predictor.rows[:5]
    torch.testing.assert_close(again.out_of_sample(table.embeddings[rows]).joint(), predictor.out_of_fold[:5].joint())


def test_stored_and_read_it_estimates_the_same():
    table = resolve("tiny")
    predictor = fit_predictor(table)
    again = Predictor.from_tensors(predictor.tensors())
    x, texts = table.embeddings[:64], table.queries["text"].to_pylist()[:64]
    torch.testing.assert_close(
        again.predict(x, texts).joint(), predictor.predict(x, texts).joint(), rtol=0.02, atol=2e-3
    )
    with pytest.raises(KeyError):
        Predictor.from_tensors({k: v for k, v in predictor.tensors().items() if k != "networks.out"})


def test_the_form_of_a_text_is_counted():
    counted = text_features(["ab 12\nC!", ""]).expm1()
    torch.testing.assert_close(counted[0], torch.tensor([8.0, 3, 2, 1, 1, 1, 8 / 3]))
    assert (counted[1] == 0).all()


@pytest.mark.parametrize(
    "texts",
    [
        ["Find 3 of the 12 roots.\n\tA) x = -1/2  B) None\r\n", "", " ", "a", "\n\n", " a  b "],
        [
            "\u00dcber 25 \u00b0C \u2014 \u201e\u20ac 1,50\u201c",
            "\u6f22\u5b57\u3002 \u0663 \u00b2 \u2460",
            "a\u00a0b\u2003c\x0bd",
        ],
        ["\U0001d7d8 \U0001f600 \U00010400", "\u01c5 \u0301 \u00aa \u0410\u0431"],
        [f"{i} Words, {'X' * (i % 7)}\n" * (i % 5) for i in range(600)],
    ],
)
def test_the_form_of_a_text_is_counted_as_patterns_count_it(texts: list[str]):
    column = pa.chunked_array([texts], pa.string())
    patterns = (r"\S+", r"\p{Nd}", r"\n", r"[\pP\pS]", r"\p{Lu}")
    counts = [pc.utf8_length(column), *(pc.count_substring_regex(column, pattern) for pattern in patterns)]
    expected = torch.tensor([count.to_pylist() for count in counts]).T.float()
    for given in (texts, column, column.slice(0)):
        assert torch.equal(text_features(given)[:, :-1], torch.from_numpy(np.log1p(expected.numpy())))
    assert text_features([]).shape == (0, 7)


def test_it_estimates_as_its_parts_do():
    table = random_table(n=300)
    predictor = fit_predictor(table)
    again = Predictor.from_tensors(predictor.tensors())
    x = torch.randn(200, table.embeddings.shape[1], generator=torch.Generator().manual_seed(0))
    texts = [f"Query {i}?" for i in range(200)]
    for one in (predictor, again):
        parts = one.ridge.predict(x, texts), one.neighbours.predict(x), one.networks.predict(x)
        mean = parts[0] / 2 + parts[1] / 4 + parts[2] / 4
        torch.testing.assert_close(one.predict(x, texts).score, mean[:, : table.scores.shape[1]])
        alone = torch.cat([one.predict(x[i : i + 1], texts[i : i + 1]).joint() for i in range(5)])
        torch.testing.assert_close(alone, one.predict(x, texts).joint()[:5])


def test_texts_tell_what_embeddings_do_not():
    """An expert that is right on long queries only: estimates follow the text's length, and are average without it."""
    n = 600
    table = random_table(n=n, k=2)
    long = torch.arange(n) % 2 == 0
    texts = ["word " * (40 if is_long else 4) for is_long in long]
    table = ExpertTable.from_arrays(
        "lengths",
        ["any", "long"],
        table.embeddings.numpy(),
        torch.stack([torch.full((n,), 0.5), long.float()], dim=1).numpy(),
        table.costs_usd.numpy(),
        texts=texts,
        split=[("train", "val", "test")[i // 2 % 3] for i in range(n)],
    )
    predictor, rows = fit_predictor(table), table.rows("test")
    x = table.embeddings[rows]
    seen = predictor.predict(x, [texts[i] for i in rows]).score[:, 1]
    assert seen[long[rows]].mean() > seen[~long[rows]].mean() + 0.2
    blind = predictor.predict(x).score[:, 1]
    assert abs(float(blind[long[rows]].mean() - blind[~long[rows]].mean())) < 0.1


def test_a_new_expert_that_is_like_a_known_one_is_estimated_like_it():
    table = resolve("tiny")
    predictor, rows = fit_predictor(table), table.rows("val")[:200]
    grown = predictor.with_expert(table.embeddings[rows], table.scores[rows, 2], table.costs_usd[rows, 2] * 3)
    test = table.rows("test")[:500]
    old, new = predictor.predict(table.embeddings[test]), grown.predict(table.embeddings[test])
    assert new.score.shape == new.cost_usd.shape == (500, 6) and grown.out_of_fold.score.shape[1] == 6
    torch.testing.assert_close(new.score[:, :5], old.score)
    assert torch.corrcoef(torch.stack([new.score[:, 5], old.score[:, 2]]))[0, 1] > 0.9
    assert torch.corrcoef(torch.stack([new.cost_usd[:, 5], old.cost_usd[:, 2]]))[0, 1] > 0.8
    assert new.cost_usd[:, 5].mean() == pytest.approx(3 * float(old.cost_usd[:, 2].mean()), rel=0.15)
