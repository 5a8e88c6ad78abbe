"""Creates live experts from a pool."""

from __future__ import annotations

from collections.abc import Sequence

from experts.live.openai import LiveOpenAI
from experts.live.types import LiveExpert
from experts.specs import OpenAISpec, Pool, entry_of
from leeroo_env.errors import InputError


def make_live_experts(pool: Pool, names: Sequence[str] | None) -> list[LiveExpert]:
    """The experts of a pool with these names (all if None). Variants share connections and `concurrency`, or weights.

    Raises:
        InputError: an environment variable that an expert needs is not set, or its tokenizer cannot be loaded.
    """
    experts: list[LiveExpert] = []
    first: dict[str, LiveOpenAI] = {}  # by entry
    all_names = {spec.name for spec in pool.experts}
    for spec in pool.select(names):
        entry = entry_of(spec.name, all_names)
        if not isinstance(spec, OpenAISpec):
            raise InputError(f"{pool.path}: expert {spec.name!r}: backend {spec.backend} cannot be used live yet")
        try:
            expert = first[entry].sibling(spec) if entry in first else LiveOpenAI(spec)
        except InputError as error:
            raise InputError(f"{pool.path}: expert {spec.name!r}: {error}") from None
        first.setdefault(entry, expert)
        experts.append(expert)
    return experts
