"""Reads from a spec how its server is reached and which settings every call to it has."""

from __future__ import annotations

import os
from typing import Any

from experts.specs import OpenAISpec
from leeroo_env.errors import InputError


def key_and_address(spec: OpenAISpec) -> tuple[str | None, str | None]:
    """The server's key and address; None: it needs no key, or is OpenAI's own.

    Raises:
        InputError: an environment variable that the spec names is not set.
    """
    key = _variable("api_key_env", spec.api_key_env) if spec.api_key_env else None
    return key, _variable("base_url_env", spec.base_url_env) if spec.base_url_env else spec.base_url


def sampling_settings(spec: OpenAISpec) -> dict[str, Any]:
    """The fields of a call's body for `generation`, without its `extra`, and for `logprobs`."""
    sampling = spec.generation
    optional = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    settings: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
    if sampling.stop:
        settings["stop"] = list(sampling.stop)
    if spec.logprobs:
        settings["logprobs"] = True if spec.chat else 0
    return settings


def limit_field(spec: OpenAISpec) -> str:
    """What the server calls the most tokens of an answer."""
    return spec.max_tokens_field if spec.chat else "max_tokens"


def _variable(field: str, name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise InputError(f"{field}: environment variable {name} is not set")
    return value
