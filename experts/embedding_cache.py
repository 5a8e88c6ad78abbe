"""Caches embeddings of texts on disk, so that no text is embedded twice."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
import warnings
from pathlib import Path

import numpy as np

from leeroo_env.files import write_atomically


def default_cache_dir() -> Path:
    """$LEEROO_CACHE, or "leeroo" in the user's cache directory."""
    if chosen := os.environ.get("LEEROO_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "leeroo"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "leeroo"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leeroo"


def digest(text: str) -> bytes:
    """The key of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class EmbeddingCache:
    """Embeddings by the SHA-256 of their texts, in shards that never change, so processes may share a directory."""

    def __init__(self, directory: Path, dim: int):
        self.directory, self.dim = directory, dim
        self.rows: dict[bytes, np.ndarray] = {}
        self._read: set[str] = set()

    def refresh(self) -> None:
        """Reads the shards that are new since the last call."""
        for path in sorted(self.directory.glob("*.npz")):
            if path.name not in self._read:
                self._read.add(path.name)
                self._read_shard(path)

    def add(self, keys: list[bytes], vectors: np.ndarray) -> None:
        """Adds vectors [n, D] and writes them as a new shard, which is complete or absent."""
        self.rows.update(zip(keys, vectors, strict=True))
        path = self.directory / f"{uuid.uuid4().hex}.npz"

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, keys=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32), vectors=vectors)
                file.flush()
                os.fsync(file.fileno())

        try:
            write_atomically(path, write)
            self._read.add(path.name)
        except OSError as error:
            warnings.warn(f"{self.directory}: embeddings are not cached: {error.strerror or error}", stacklevel=2)

    def _read_shard(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as shard:
                keys, vectors = shard["keys"], shard["vectors"]
            if keys.shape != (len(vectors), 32) or vectors.shape[1:] != (self.dim,) or vectors.dtype != np.float32:
                raise ValueError("unexpected shapes")
        except Exception as error:  # zipfile, zlib and numpy raise different errors for a damaged file
            warnings.warn(f"{path}: not a readable shard, ignored: {error}", stacklevel=4)
            return
        self.rows.update(zip((key.tobytes() for key in keys), vectors, strict=True))
