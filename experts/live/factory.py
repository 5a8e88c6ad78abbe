"""Creates live experts from a pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experts.live.local import Batches, LiveLocal
from experts.live.openai import LiveOpenAI
from experts.live.types import LiveExpert
from experts.pool.factory import make_experts
from experts.specs import LocalSpec, OpenAISpec, Pool
from experts.spending import SpendCap
from leeroo_env.errors import InputError
from leeroo_env.variants import entry_of


def make_live_experts(pool: Pool, names: Sequence[str] | None) -> list[LiveExpert]:
    """The experts of a pool with these names (all if None). Variants share connections and `concurrency`, or weights.

    Raises:
        InputError: an environment variable that an expert needs is not set, or its tokenizer cannot be loaded.
    """
    specs = pool.select(names)
    local = [spec.name for spec in specs if isinstance(spec, LocalSpec)]
    loaded = {expert.name: expert for expert in make_experts(pool, local, SpendCap())}
    first: dict[str, Any] = {}  # by entry: its first expert, or its batches
    all_names = {spec.name for spec in pool.experts}
    experts: list[LiveExpert] = []
    for spec in specs:
        entry = entry_of(spec.name, all_names)
        if not isinstance(spec, OpenAISpec):
            experts.append(LiveLocal(loaded[spec.name], spec, first.setdefault(entry, Batches())))
            continue
        try:
            expert = first[entry].variant(spec) if entry in first else LiveOpenAI(spec)
        except InputError as error:
            raise InputError(f"{pool.path}: expert {spec.name!r}: {error}") from None
        first.setdefault(entry, expert)
        experts.append(expert)
    return experts
