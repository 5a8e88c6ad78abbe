"""Features of the form of a text: its length, and its counts of digits, line ends, punctuation and capitals."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from leeroo_env.table import ExpertTable

OTHER, SPACE, DIGIT, LINE, MARK, CAPITAL = range(6)  # kinds of characters; marks are punctuation and symbols
COUNTED = (DIGIT, LINE, MARK, CAPITAL)
N_FEATURES = len(COUNTED) + 3
BLOCK = 256  # characters whose kinds are looked up together
CHUNK = 256  # texts
_kinds = np.zeros(0x110000, dtype=np.uint8)  # of characters, as far as they are `_known`
_known = np.zeros(len(_kinds) // BLOCK, dtype=bool)


def text_features(texts: Sequence[str] | pa.ChunkedArray) -> Tensor:
    """[N, 7] float32: logarithms of the number of characters, words, digits, line ends, punctuation marks and capitals,
    and of the mean length of a word. Embeddings hardly hold these, and costs and scores depend on them."""
    parts = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    counts = [_counts(part.to_pylist() if isinstance(part, pa.ChunkedArray) else part) for part in parts]
    x = np.concatenate([np.zeros((0, N_FEATURES - 1)), *counts]).astype(np.float32)
    length = x[:, :1] / np.maximum(x[:, 1:2], 1)
    return torch.from_numpy(np.log1p(np.concatenate([x, length], axis=1)))


def _counts(texts: Sequence[str]) -> np.ndarray:
    """[N, 6], the numbers of characters, of words, and of characters of the kinds `COUNTED`."""
    lengths = np.array([len(text) for text in texts])
    joined = " " + " ".join(texts)  # with a space before each: where a word begins
    kinds = _kinds_of(np.frombuffer(joined.encode("utf-32-le"), dtype="<u4"))
    spaces = (kinds == SPACE) | (kinds == LINE)
    words = np.zeros_like(spaces)
    words[1:] = spaces[:-1] & ~spaces[1:]
    starts = np.concatenate([[0], np.cumsum(lengths[:-1] + 1)])
    counted = (words, *(kinds == kind for kind in COUNTED))
    return np.stack([lengths, *(np.add.reduceat(each, starts, dtype=np.int64) for each in counted)], axis=1)


def _kinds_of(codes: np.ndarray) -> np.ndarray:
    """The kinds of characters from their code points, [n]."""
    blocks = np.flatnonzero(np.bincount(codes // BLOCK))
    for block in blocks[~_known[blocks]].tolist():
        own = range(block * BLOCK, (block + 1) * BLOCK)
        _kinds[own.start : own.stop] = [_kind(chr(code)) for code in own]
        _known[block] = True
    return _kinds[codes]


def _kind(character: str) -> int:
    if character in "\t\f\r ":
        return SPACE
    if character == "\n":
        return LINE
    category = unicodedata.category(character)
    return {"Nd": DIGIT, "Lu": CAPITAL}.get(category, MARK if category[0] in "PS" else OTHER)


def texts_of(table: ExpertTable) -> pa.ChunkedArray:
    """The texts of all queries of a table, [N]; empty where the table has only ids in their place."""
    texts, ids = table.queries["text"], table.queries["query_id"]
    return pc.if_else(pc.equal(texts, ids).fill_null(True), "", texts)
