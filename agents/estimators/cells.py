"""An index of many references for nearest neighbours: cells around centroids, of which a search reads the nearest few.

It is faiss's inverted file (Johnson, Douze and Jegou, Billion-scale similarity search with GPUs, 2017), from the extra
`faiss`. Without it, and on a GPU, neighbours are searched among all references.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

REFERENCES = 128  # a cell, on average, so that a search takes as long however many there are
SEARCHED = 8  # cells
TRAINED_ON = 64  # references a cell
ITERATIONS = 8


def find_cells(references: Tensor, seed: int) -> Tensor | None:
    """Centroids [L, D] of k-means of references [n, D] of length 1; None where there is no index."""
    faiss = _faiss()
    if faiss is None or references.device.type != "cpu":
        return None
    n_cells = -(-len(references) // REFERENCES)
    sample = torch.randperm(len(references), generator=torch.Generator().manual_seed(seed))[: TRAINED_ON * n_cells]
    kmeans = faiss.Kmeans(references.shape[1], n_cells, niter=ITERATIONS, seed=seed, spherical=True)
    kmeans.cp.min_points_per_centroid = 1
    kmeans.train(references[sample].float().numpy())
    return torch.from_numpy(kmeans.centroids.copy())


def make_index(references: Tensor, cells: Tensor | None) -> Any:
    """The index of references [n, D] by their cells [L, D], in half precision; None where there is none."""
    faiss = _faiss()
    if cells is None or faiss is None or references.device.type != "cpu":
        return None
    quantizer = faiss.IndexFlatIP(cells.shape[1])
    quantizer.add(cells.numpy())
    half, by_product = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(quantizer, cells.shape[1], len(cells), half, by_product, False)
    index.train(cells.numpy())
    for part in references.split(2**14):
        index.add(part.float().numpy())
    index.nprobe = SEARCHED
    return index


def search(index: Any, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines of queries [B, D] with the k nearest references, and their numbers, both [B, k]; where fewer are in the
    cells searched, -2 and 0."""
    cosine, which = index.search(np.ascontiguousarray(queries.numpy()), k)
    missing = torch.from_numpy(which) < 0
    return torch.from_numpy(cosine).masked_fill(missing, -2.0), torch.from_numpy(which).masked_fill(missing, 0)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        return None
    return faiss
