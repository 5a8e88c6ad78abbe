"""Near duplicates are found, among many queries too, and stay on one side of a split that is made for them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from leeroo_env.table import hash_split
from leeroo_env.table.duplicates import NEAR_DUPLICATE, kept_together, near_duplicates


def with_cosine(x: np.ndarray, cosine: float, rng: np.random.Generator) -> np.ndarray:
    """Rows of length 1 that have this cosine with those of x [n, D]."""
    noise = rng.standard_normal(x.shape)
    noise -= (noise * x).sum(axis=1, keepdims=True) * x
    return cosine * x + (1 - cosine**2) ** 0.5 * noise / np.linalg.norm(noise, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def distinct() -> np.ndarray:
    """[3000, 64], of length 1, in clusters."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 64)).repeat(100, axis=0) + 0.7 * rng.standard_normal((3000, 64))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_pairs_are_found_by_their_cosine(distinct: np.ndarray):
    rng = np.random.default_rng(1)
    same = with_cosine(distinct[:500], NEAR_DUPLICATE + 2e-4, rng)
    other = with_cosine(distinct[500:1000], NEAR_DUPLICATE - 2e-4, rng)
    first = near_duplicates(np.concatenate([distinct, same, other, distinct[:5], 3 * distinct[:5]]).astype(np.float16))
    assert first.tolist() == [*range(3000), *range(500), *range(3500, 4000), *range(5), *range(5)]


@pytest.mark.parametrize("embeddings", [np.ones((50, 8)), np.zeros((50, 8)), np.ones((1, 3)), np.eye(4)])
def test_embeddings_that_tell_nothing_apart_are_no_duplicates(embeddings: np.ndarray):
    assert near_duplicates(embeddings.astype(np.float32)).tolist() == list(range(len(embeddings)))


def test_near_duplicates_get_the_split_of_the_first_unless_one_is_given():
    ids = [f"q{i}" for i in range(40)]
    train, test = (next(i for i in ids if hash_split(i) == name) for name in ("train", "test"))
    others = [i for i in ids if i not in (train, test)]
    order = [train, test, *others]
    x = np.eye(40, dtype=np.float32)
    x[1] = x[0]
    x[4] = x[3]
    given = [None] * 40
    given[4] = "val"
    queries = pa.table({"query_id": order, "split": pa.array(given, pa.string())})
    splits = kept_together(queries, x)["split"].to_pylist()
    assert splits[:2] == [None, "train"]
    assert splits[3:5] == [None if hash_split(order[3]) == "val" else "val", "val"]
    assert splits[2] is None and splits[5:] == [None] * 35
