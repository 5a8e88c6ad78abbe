"""Computes the keys under which answers are stored: a hash of everything that shapes an answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from experts.specs import ExpertSpec
from experts.types import Query

IDENTITY_FIELDS = {
    "name",
    "backend",
    "model",
    "revision",
    "max_tokens",
    "system",
    "chat",
    "generation",
    "dtype",
    "engine",
}


def keys_for(spec: ExpertSpec) -> Callable[[Query], str]:
    """The function from a query to the key of its answer. Prices, addresses and batch sizes do not change a key."""
    identity = hashlib.sha256(_identity(spec).encode()).digest()
    return lambda query: hashlib.sha256(identity + spec.render(query).encode()).hexdigest()


def _identity(spec: ExpertSpec) -> str:
    identity = spec.model_dump(mode="json", include=IDENTITY_FIELDS)
    if spec.directory is not None:
        identity["model"] = fingerprint(spec.directory)
    return json.dumps(identity, sort_keys=True)


def fingerprint(directory: Path, samples: int = 64, sample_bytes: int = 65536) -> str:
    """A hash of a model directory: names, sizes and evenly spaced samples of its files, fast for large weights."""
    digest = hashlib.sha256()
    for file in sorted(p for p in directory.rglob("*") if p.is_file() and p.name[0] != "." and p.suffix != ".md"):
        size = file.stat().st_size
        offsets = list(range(0, size, sample_bytes))
        if len(offsets) > samples:
            offsets = [i * (size - sample_bytes) // (samples - 1) for i in range(samples)]
        digest.update(f"{file.relative_to(directory)}\0{size}\0".encode())
        with file.open("rb") as stream:
            for offset in offsets:
                stream.seek(offset)
                digest.update(stream.read(sample_bytes))
    return digest.hexdigest()
