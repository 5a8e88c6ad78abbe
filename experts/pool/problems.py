"""Says in one line what is wrong with a pool.yaml: the field, the problem, and the field that may have been meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic

from experts.specs import BACKENDS, Generation, Pool, Settings

OTHER_NAMES = {  # what other programs call the fields
    "api_base": "base_url",
    "endpoint": "base_url",
    "host": "base_url",
    "url": "base_url",
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "max_length": "max_tokens",
    "model_id": "model",
    "model_path": "model",
    "model_name": "model",
    "path": "model",
    "provider": "backend",
    "type": "backend",
    "prompt_template": "prompt",
    "evidence_verbal": "confidence",
    "stated_confidence": "confidence",
    "system_message": "system",
    "system_prompt": "system",
    "input_cost_per_token": "usd_per_mtok_in",
    "output_cost_per_token": "usd_per_mtok_out",
    "input_price": "usd_per_mtok_in",
    "output_price": "usd_per_mtok_out",
    "price_in": "usd_per_mtok_in",
    "price_out": "usd_per_mtok_out",
    "extra_body": "extra",
    "parallel": "concurrency",
    "workers": "concurrency",
    "id": "name",
    "size": "parameters_b",
    "temp": "temperature",
    "torch_dtype": "dtype",
}
SERVERS = """
    anthropic azure deepseek gemini google groq http litellm llama.cpp llamacpp lmstudio mistral ollama
    openai-compatible openrouter server sglang tgi together xai
"""
OTHER_BACKENDS = {  # what a backend may be called, and the one that asks it
    **dict.fromkeys(("hf", "transformers", "local"), "huggingface"),
    **dict.fromkeys(SERVERS.split(), "openai, with the server's address as base_url"),
}


def first_problem(error: pydantic.ValidationError) -> str:
    """pydantic's first error as "field: problem, not value"; an unknown field first, as it may explain the others."""
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location = [part for i, part in enumerate(first["loc"]) if not (i == 2 and part in BACKENDS)]
    field = ".".join(str(part) for part in location) or "the file"
    message, kind = first["msg"].removeprefix("Value error, "), first["type"]
    if kind == "extra_forbidden":
        value = "" if isinstance(first["input"], dict | list) else f" (here {_printable(first['input'], location)})"
        return f"{field}: there is no such field{value}{_meant(first['loc'])}"
    if kind == "union_tag_not_found":
        return f"{field}.backend: is missing; one of {', '.join(BACKENDS)}"
    if kind == "union_tag_invalid":
        return f"{field}: {message}{_meant_backend(first['input'])}"
    if kind in ("missing", "value_error") or isinstance(first["input"], dict | list):
        return f"{field}: {message}"
    hint = "; an address goes into base_url" if field.endswith("base_url_env") else ""
    return f"{field}: {message}, not {_printable(first['input'], location)}{hint}"


def _meant(location: Sequence[Any]) -> str:
    """Which field may have been meant by an unknown one, as "; did you mean ...?"; empty if none is like it."""
    name = str(location[-1]).lower().replace("-", "_")
    name = OTHER_NAMES.get(name, name)
    if len(location) < 3:
        return _did_you_mean(name, {field: field for field in public_fields(Pool)})
    in_variant = location[3] == "variants"
    of_expert = {field: field for field in public_fields(Settings if in_variant else BACKENDS[location[2]])}
    of_generation = {field: f"generation.{field}" for field in public_fields(Generation)}
    of_generation["reasoning_effort"] = "generation.extra.reasoning_effort"
    if location[-2] == "generation":
        beside = of_expert.get(name)
        return f"; did you mean {beside} beside generation?" if beside else _did_you_mean(name, of_generation)
    if in_variant:
        hint = _did_you_mean(name, of_generation | of_expert)
        return hint or f"; a variant may change {', '.join(public_fields(Settings))}"
    owners = [backend for backend, spec in BACKENDS.items() if name in public_fields(spec)]
    if owners and name not in of_expert:
        return f"; {name} is a field of backend {' and '.join(owners)}"
    return _did_you_mean(name, of_generation | of_expert)


def _did_you_mean(name: str, known: dict[str, str]) -> str:
    close = [name] if name in known else difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {known[close[0]]}?" if close else ""


def public_fields(model: type[pydantic.BaseModel]) -> Iterator[str]:
    """The fields that stand in a file; the others are filled in by the loader."""
    return (name for name, field in model.model_fields.items() if not field.exclude)


def _meant_backend(given: Any) -> str:
    name = str(given.get("backend") if isinstance(given, dict) else given).lower()
    close = difflib.get_close_matches(name, BACKENDS, n=1)
    meant = OTHER_BACKENDS.get(name) or (close[0] if close else None)
    return f"; did you mean {meant}?" if meant else ""


def _printable(value: Any, location: Sequence[Any]) -> str:
    """A value for an error message; what may be or hold a secret is not shown."""
    hidden = any("key" in str(part).lower() for part in location)
    hidden = hidden or (isinstance(value, str) and bool(re.search(r"://.*[@?]", value)))
    return "the value given (not shown)" if hidden else repr(value)[:80]
