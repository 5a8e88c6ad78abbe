"""Which experts are one model, by their names."""

from __future__ import annotations

import pytest

from leeroo_env.variants import entry_of, shared_models


@pytest.mark.parametrize(
    ("names", "models"),
    [
        (["a", "b", "c"], None),
        (["a", "a@short", "b", "a@long"], [0, 0, 2, 0]),
        (["a@short", "b", "a"], [2, 1, 2]),
        (["a@2026", "a@2025"], None),  # names with an @ of their own
        (["a@2026", "a@2026@short"], [0, 0]),
        (["@cf/llama", "@cf/llama@short", "@cf/qwen"], [0, 0, 2]),
        (["a", "b@a", "a@"], [0, 1, 0]),
    ],
)
def test_variants_have_the_model_of_their_entry(names: list[str], models: list[int] | None):
    found = shared_models(names)
    assert (None if found is None else found.tolist()) == models
    assert [names.index(entry_of(name, names)) for name in names] == (models or list(range(len(names))))
