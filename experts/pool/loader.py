"""Reads and checks pool.yaml.

    experts:
      - name: small
        backend: huggingface          # openai, huggingface or vllm
        model: models/small           # a directory relative to this file, or a name that the backend knows
        usd_per_mtok_in: 0.05
        usd_per_mtok_out: 0.2
        max_tokens: 64
        prompt: "Question: {text}\nAnswer:"

docs/pool.md lists all fields of each backend with their defaults.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic

from experts.pool.problems import first_problem
from experts.specs import AnySpec, OpenAISpec, Pool
from leeroo_env.errors import InputError
from leeroo_env.yaml_file import read_yaml

SECRET_NAMES = re.compile(
    r"(api|access|secret|private)[_-]?key$|authorization|passw(or)?d|secret$|(^|api|auth|access|hf)[_-]?token$", re.I
)
SECRET_VALUES = re.compile(
    r"\b(sk|pk|rk|gsk|xai|hf|r8|pplx|nvapi)[-_][\w-]{16,}|\bAKIA[0-9A-Z]{12,}|\bAIza\w{20,}|\bBearer\s", re.ASCII
)
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def load_pool(path: str | os.PathLike, copy: Path | None = None) -> Pool:
    """Reads and checks a pool.yaml.

    Args:
        path: of the file, from which relative paths in it begin.
        copy: of an earlier state of the file, which is read in its place.

    Raises:
        InputError: one line that names file, field and value; the value of a secret is never shown.
    """
    path = Path(path)
    data = read_yaml(copy or path)
    for field, problem in _secrets(data):
        raise InputError(f"{path}: {field}: {problem}; name an environment variable with api_key_env instead")
    try:
        pool = Pool.model_validate(data)
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from None
    _check_names(pool, path)
    specs = [_find_model(spec, path, f"experts.{i}.model") for i, spec in enumerate(pool.experts)]
    experts = tuple(expert for i, spec in enumerate(specs) for expert in _with_variants(spec, path, f"experts.{i}"))
    return pool.model_copy(update={"path": path, "experts": experts})


def _check_names(pool: Pool, path: Path) -> None:
    """Raises InputError for names that are not unique, or read like that of a variant without being one."""
    names = [spec.name for spec in pool.experts]
    for i, name in enumerate(names):
        field, (entry, _, variant) = f"{path}: experts.{i}.name: {name!r}", name.rpartition("@")
        if name in names[:i]:
            raise InputError(f"{field} appears twice")
        if entry in names:
            raise InputError(f"{field} reads like variant {variant!r} of {entry!r}; make it one, or rename it")


def _with_variants(spec: AnySpec, path: Path, field: str) -> Iterator[AnySpec]:
    """The expert and its variants, each as an expert of its own."""
    yield spec.model_copy(update={"variants": {}})
    for name in spec.variants:
        try:
            yield spec.variant(name)
        except pydantic.ValidationError as error:
            raise InputError(f"{path}: {field}.variants.{name}.{first_problem(error)}") from None


def _find_model(spec: AnySpec, path: Path, field: str) -> AnySpec:
    """The spec with the directory of its local model, if it has one."""
    if isinstance(spec, OpenAISpec):
        beside = path.parent / (spec.tokenizer or "")
        return spec.model_copy(update={"tokenizer": str(beside)}) if spec.tokenizer and beside.is_dir() else spec
    directory = (path.parent / Path(spec.model).expanduser()).resolve()
    if (directory / "config.json").is_file():
        return spec.model_copy(update={"directory": directory})
    if directory.exists() or HUB_NAME.fullmatch(spec.model) is None:
        raise InputError(f"{path}: {field}: {spec.model!r} is no model directory (no config.json in it)")
    return spec


def _secrets(node: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Fields that seem to hold a key: the field's name and a description of the problem, without the value."""
    items: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    elif isinstance(node, str) and SECRET_VALUES.search(node):
        yield field, "looks like a key (its value is not shown)"
    for name, value in items:
        inner = f"{field}.{name}" if field else str(name)
        if isinstance(name, str) and SECRET_NAMES.search(name) and value is not None:
            yield inner, "a key must not be in this file (its value is not shown)"
        yield from _secrets(value, inner)
