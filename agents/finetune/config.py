"""The settings of tuning an encoder, and the check that they make sense."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leeroo_env import InputError


@dataclass(frozen=True)
class Config:
    """Tunes a table's encoder to predict every expert's score, and writes a table of tuned embeddings."""

    table: str
    """A table directory, or the name of a built-in one."""
    out: str
    """The table directory to write, with the tuned encoder in OUT/encoder; it must not exist."""
    encoder: str = ""
    """The model to tune, a name on the Hugging Face hub or a directory; the table's encoder if empty."""
    steps: int = 200
    """Optimiser steps."""
    batch_size: int = 32
    """Queries per step."""
    share: float = 0.5
    """The part of the train split to tune on; the new table leaves these queries out."""
    lora_rank: int = 0
    """Tunes low-rank additions (LoRA) of this rank to all linear layers, merged at the end; 0 tunes all weights."""
    learning_rate: float | None = None
    """Peak rate, after the warm-up; if not given 5e-5 where all weights are tuned, 5e-4 with LoRA."""
    max_tokens: int | None = None
    """Longer queries are cut; if not given the limit of the table's encoder, else the model's."""
    seed: int = 0
    """Decides everything that is random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the encoder; auto takes the GPU if there is one."""
    threads: int = 0
    """Threads of torch; 0: torch's default."""


def check_settings(config: Config) -> None:
    """Also makes the parent of `out`. Raises InputError where a setting makes no sense or `out` cannot be written."""
    for name, value in (("steps", config.steps), ("batch_size", config.batch_size), ("max_tokens", config.max_tokens)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: must be at least 1")
    if config.lora_rank < 0 or config.threads < 0:
        raise InputError(f"lora_rank {config.lora_rank}, threads {config.threads}: must not be negative")
    if config.learning_rate is not None and not 0 < config.learning_rate < 1:
        raise InputError(f"learning_rate {config.learning_rate}: must be between 0 and 1")
    if not 0 < config.share < 1:
        raise InputError(f"share {config.share}: must be between 0 and 1, so that the new table has a train split")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed {config.seed}: must be 0 to 2^32 - 1")
    out = Path(config.out)
    if out.exists():
        raise InputError(f"{out}: exists; name another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)  # fails before the tuning, not after it
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error
