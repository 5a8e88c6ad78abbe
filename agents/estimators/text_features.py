"""Features of the form of a text: its length, and its counts of digits, line ends, punctuation and capitals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from leeroo_env.table import ExpertTable

COUNTED = (r"\S+", r"\p{Nd}", r"\n", r"[\pP\pS]", r"\p{Lu}")  # words, digits, lines, punctuation, capitals
N_FEATURES = len(COUNTED) + 2


def text_features(texts: Sequence[str] | pa.ChunkedArray) -> Tensor:
    """[N, 7] float32: logarithms of the number of characters, words, digits, line ends, punctuation marks and capitals,
    and of the mean length of a word. Embeddings hardly hold these, and costs and scores depend on them."""
    column = texts if isinstance(texts, pa.ChunkedArray) else pa.chunked_array([pa.array(texts, pa.string())])
    counts = [pc.utf8_length(column), *(pc.count_substring_regex(column, pattern) for pattern in COUNTED)]
    x = np.stack([count.to_numpy().astype(np.float32) for count in counts], axis=1)
    length = x[:, :1] / np.maximum(x[:, 1:2], 1)
    return torch.from_numpy(np.log1p(np.concatenate([x, length], axis=1)))


def texts_of(table: ExpertTable) -> pa.ChunkedArray:
    """The texts of all queries of a table, [N]; empty where the table has only ids in their place."""
    texts, ids = table.queries["text"], table.queries["query_id"]
    return pc.if_else(pc.equal(texts, ids).fill_null(True), "", texts)
