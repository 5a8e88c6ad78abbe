"""Finds queries that are nearly the same, by the cosine of their embeddings; they belong into one fold and one split.

N queries, D embedding.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from leeroo_env.table.schema import hash_split

NEAR_DUPLICATE = 0.999  # cosine above which two queries count as one: the same text but for spaces and marks
TABLES, BITS = 10, 24
WINDOW = 8
MOST = 0.2  # of the rows in one group: with more, embeddings do not tell queries apart, and none of it counts
BLOCK = 2**14


def near_duplicates(embeddings: np.ndarray) -> np.ndarray:
    """For each row of embeddings [N, D] the first row that is nearly the same, or that is so through others; [N] int64.

    Rows are compared that agree in the signs of 24 random projections (Charikar, Similarity estimation techniques from
    rounding algorithms, 2002), in one of ten tables, with the next eight in each: time is linear in rows, and a pair
    right at the threshold is missed with a chance of about 1 in 100,000.
    """
    n, codes = len(embeddings), _codes(embeddings)
    pairs = [np.zeros(0, np.int64)]
    for code in codes.T:
        order = code.argsort(kind="stable")
        for shift in range(1, min(WINDOW, len(order) - 1) + 1):
            equal = code[order[shift:]] == code[order[:-shift]]
            one, other = order[:-shift][equal], order[shift:][equal]
            pairs.append(np.minimum(one, other) * n + np.maximum(one, other))
    linked = _near(embeddings, np.stack(np.divmod(np.unique(np.concatenate(pairs)), n), axis=1))
    graph = coo_array((np.ones(len(linked), bool), linked.T), shape=(n, n))
    _, group = connected_components(graph, directed=False)
    _, first, member, size = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    return np.where(size[member] > MOST * n, np.arange(n), first[member]).astype(np.int64)


def kept_together(queries: pa.Table, embeddings: np.ndarray) -> pa.Table:
    """The queries with a split for each that its id would part from those that are nearly the same.

    Where none of these has a split, they get that of the first, so that rows which are added later move none.
    """
    ids, given = queries["query_id"].to_pylist(), queries["split"].to_pylist()
    first = near_duplicates(embeddings)
    splits, decided = list(given), dict[int, str]()
    members = np.flatnonzero(np.bincount(first)[first] > 1).tolist()
    for row in members:
        if given[row] is not None:
            decided.setdefault(int(first[row]), given[row])
    for row in members:
        wanted = decided.get(int(first[row])) or hash_split(ids[first[row]])
        if given[row] is None and wanted != hash_split(ids[row]):
            splits[row] = wanted
    return queries.set_column(queries.column_names.index("split"), "split", pa.array(splits, pa.string()))


def _codes(embeddings: np.ndarray) -> np.ndarray:
    """The signs of projections as numbers, [N, tables] int64."""
    rng = np.random.default_rng(0)
    planes = rng.standard_normal((embeddings.shape[1], TABLES * BITS), dtype=np.float32)
    mean = _units(embeddings[:: -(-len(embeddings) // BLOCK)]).mean(axis=0)  # signs tell most around it
    powers = 1 << np.arange(BITS)
    blocks = (_units(embeddings[i : i + BLOCK]) for i in range(0, len(embeddings), BLOCK))
    return np.concatenate([((x - mean) @ planes > 0).reshape(-1, TABLES, BITS) @ powers for x in blocks])


def _near(embeddings: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Those of `pairs` [P, 2] with a cosine above the threshold."""
    parts = [pairs[i : i + BLOCK] for i in range(0, len(pairs), BLOCK)]
    cosines = (np.einsum("pd,pd->p", *(_units(embeddings[column]) for column in part.T)) for part in parts)
    return np.concatenate([part[c > NEAR_DUPLICATE] for part, c in zip(parts, cosines, strict=True)] or [pairs])


def _units(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
