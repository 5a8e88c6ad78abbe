"""Creates experts from their specs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from experts.backends.openai import OpenAIExpert
from experts.specs import ExpertSpec, HuggingFaceSpec, OpenAISpec, Pool, VllmSpec
from experts.spending import SpendCap
from experts.types import Expert
from leeroo_env.errors import InputError
from leeroo_env.variants import entry_of


def make_expert(spec: ExpertSpec, spend_cap: SpendCap) -> Expert:
    """The expert that a spec describes; a local model is loaded when it is first asked.

    Raises:
        InputError: an environment variable that the expert needs is not set.
    """
    if isinstance(spec, OpenAISpec):
        return OpenAIExpert(spec, spend_cap)
    if isinstance(spec, HuggingFaceSpec):
        from experts.backends.huggingface import HuggingFaceExpert  # imports torch

        return HuggingFaceExpert(spec, spend_cap)
    if isinstance(spec, VllmSpec):
        from experts.backends.vllm import VllmExpert

        return VllmExpert(spec, spend_cap)
    raise TypeError(f"no backend for {type(spec).__name__}")


def make_experts(pool: Pool, names: Sequence[str] | None, spend_cap: SpendCap) -> list[Expert]:
    """The experts of a pool with these names (all if None), under one spend cap.

    The variants of an entry share its weights, or its connections and `concurrency`.
    """
    experts = []
    first: dict[str, Expert] = {}  # by entry
    all_names = {spec.name for spec in pool.experts}
    for spec in pool.select(names):
        entry = entry_of(spec.name, all_names)
        try:
            expert = with_spec(first[entry], spec) if entry in first else make_expert(spec, spend_cap)
        except InputError as error:
            raise InputError(f"{pool.path}: expert {spec.name!r}: {error}") from None
        first.setdefault(entry, expert)
        experts.append(expert)
    return experts


def with_spec(expert: Expert, spec: ExpertSpec) -> Expert:
    """An expert with other settings: a shallow copy, so that what is loaded or open is shared."""
    sibling: Any = copy.copy(expert)
    sibling.name, sibling.spec = spec.name, spec
    return sibling  # type: ignore[no-any-return]


def with_cap(expert: Expert, spend_cap: SpendCap) -> Expert:
    """The same expert under another spend cap."""
    sibling: Any = copy.copy(expert)
    sibling._spend_cap = spend_cap
    return sibling  # type: ignore[no-any-return]
