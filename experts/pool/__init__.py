"""pool.yaml: which experts there are, how they are asked and what they cost.

    experts:
      - name: small
        backend: huggingface          # openai, huggingface or vllm
        model: models/small           # a directory beside this file, or a name the backend knows
        usd_per_mtok_in: 0.05
        usd_per_mtok_out: 0.2
        max_tokens: 64
        prompt: "Question: {text}\nAnswer:"

`OpenAISpec`, `HuggingFaceSpec` and `VllmSpec` list every field with its default.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from experts.spending import Price, SpendCap
from experts.types import Expert, Query
from leeroo_env.errors import InputError

SECRET_NAMES = re.compile(
    r"(api|access|secret|private)[_-]?key$|authorization|passw(or)?d|secret$|(^|api|auth|access|hf)[_-]?token$", re.I
)
SECRET_VALUES = re.compile(
    r"\b(sk|pk|rk|gsk|xai|hf|r8|pplx|nvapi)[-_][\w-]{16,}|\bAKIA[0-9A-Z]{12,}|\bAIza\w{20,}|\bBearer\s", re.ASCII
)
LIMITS = {"max_tokens", "max_completion_tokens", "max_new_tokens", "max_length", "n", "best_of", "num_return_sequences"}
SET_ELSEWHERE = LIMITS | {"num_beams", "use_beam_search", "stream", "messages", "prompt", "model"}
TEMPLATE_TOKENS = 256  # the most that a chat template adds to a prompt
Dollars = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Variable = Annotated[str, pydantic.Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]


class Model(pydantic.BaseModel):
    """Unknown fields are refused and nothing is converted silently."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


class Generation(Model):
    """How an answer is drawn. `temperature` 0 is greedy; null leaves it to the server."""

    temperature: float | None = pydantic.Field(default=0.0, ge=0)
    top_p: float | None = pydantic.Field(default=None, gt=0, le=1)
    seed: int | None = None
    stop: Annotated[tuple[str, ...], pydantic.Field(strict=False)] = ()
    extra: dict[str, Any] = {}  # handed to the backend as it is

    @pydantic.field_validator("extra")
    @classmethod
    def _cannot_lift_limits(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in SET_ELSEWHERE & set(extra):
            raise ValueError(f"{name} cannot be set here, the spend cap relies on it")
        return extra


class ExpertSpec(Model):
    """What all backends share. A price is `usd_per_mtok_in` and `usd_per_mtok_out`, or `usd_per_second`."""

    name: str = pydantic.Field(min_length=1)
    model: str = pydantic.Field(min_length=1)
    revision: str | None = None
    parameters_b: float | None = pydantic.Field(default=None, gt=0)
    usd_per_mtok_in: Dollars | None = None
    usd_per_mtok_out: Dollars | None = None
    usd_per_second: Dollars | None = None
    max_tokens: int = pydantic.Field(default=1024, gt=0)
    prompt: str = "{text}"
    system: str | None = None
    generation: Generation = Generation()
    timeout_s: float = pydantic.Field(default=120.0, gt=0)  # of one request; by the second, no call is billed for more
    directory: Path | None = pydantic.Field(
        default=None, exclude=True
    )  # of a local model, found when the pool is loaded

    @pydantic.field_validator("prompt")
    @classmethod
    def _holds_text(cls, prompt: str) -> str:
        if "{text}" not in prompt:
            raise ValueError("should contain {text}, where the query goes")
        return prompt

    @pydantic.model_validator(mode="after")
    def _has_one_price(self) -> ExpertSpec:
        by_token = self.usd_per_mtok_in is not None, self.usd_per_mtok_out is not None
        if any(by_token) != all(by_token) or any(by_token) == (self.usd_per_second is not None):
            raise ValueError("give either usd_per_mtok_in and usd_per_mtok_out, or usd_per_second")
        return self

    @property
    def price(self) -> Price:
        by_token = self.usd_per_mtok_in or 0.0, self.usd_per_mtok_out or 0.0
        return Price(*by_token, self.usd_per_second or 0.0, self.timeout_s)

    @property
    def model_path(self) -> str:
        """What the backend loads: the local directory where there is one, the model's name otherwise."""
        return self.model if self.directory is None else str(self.directory)

    def render(self, query: Query) -> str:
        """The prompt of a query."""
        return self.prompt.replace("{text}", query.text)

    @property
    def attempts(self) -> int:
        """The most times that one call is sent."""
        return 1

    def most_prompt_tokens(self, query: Query) -> int:
        """An upper bound of a prompt's tokens: a token has at least one byte, and a chat template adds a few."""
        return len(self.render(query).encode()) + len((self.system or "").encode()) + TEMPLATE_TOKENS

    def worst_usd(self, query: Query) -> float:
        """The most that one attempt of a call can cost."""
        return self.price.worst_usd(self.most_prompt_tokens(query), self.max_tokens)


class OpenAISpec(ExpertSpec):
    """A model behind a server that speaks OpenAI's protocol. Address and key are named, never written down."""

    backend: Literal["openai"]
    base_url_env: Variable | None = None  # null: OPENAI_BASE_URL where that is set, OpenAI's own address otherwise
    api_key_env: Variable | None = "OPENAI_API_KEY"  # null: the server wants none
    chat: bool = True  # false asks /completions instead of /chat/completions
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    concurrency: int = pydantic.Field(default=8, gt=0)
    max_retries: int = pydantic.Field(default=5, ge=0)

    @property
    def attempts(self) -> int:
        return 1 + self.max_retries


class LocalSpec(ExpertSpec):
    """A model that runs on this machine."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    chat: bool | None = None  # null: the tokenizer's chat template where it has one
    batch_size: int = pydantic.Field(default=16, gt=0)


class HuggingFaceSpec(LocalSpec):
    """A causal language model of the transformers library."""

    backend: Literal["huggingface"]
    device: str = "cpu"


class VllmSpec(LocalSpec):
    """vLLM's offline engine. `engine` goes to `vllm.LLM` as it is."""

    backend: Literal["vllm"]
    batch_size: int = pydantic.Field(default=256, gt=0)
    engine: dict[str, Any] = {}


Spec = Annotated[OpenAISpec | HuggingFaceSpec | VllmSpec, pydantic.Field(discriminator="backend")]


class Pool(Model):
    """A whole pool.yaml; `path` is where it was read from."""

    experts: Annotated[tuple[Spec, ...], pydantic.Field(min_length=1, strict=False)]
    path: Path = pydantic.Field(default=Path("pool.yaml"), exclude=True)

    def select(self, names: Sequence[str] | None) -> list[OpenAISpec | HuggingFaceSpec | VllmSpec]:
        """The specs of these experts, in this order; all where None."""
        specs = {spec.name: spec for spec in self.experts}
        for name in names or ():
            if name not in specs:
                raise InputError(f"{self.path}: no expert named {name!r}; there are {', '.join(specs)}")
        return [specs[name] for name in (specs if names is None else dict.fromkeys(names))]


def load_pool(path: str | os.PathLike) -> Pool:
    """Reads and checks a pool.yaml.

    Raises:
        InputError: one line that names file, field and value; a secret's value is never shown.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError(f"{path}: no valid YAML" + (f" in line {mark.line + 1}" if mark else "")) from None
    for field, shown in _secrets(data):
        raise InputError(f"{path}: {field}: {shown}; name an environment variable with api_key_env instead")
    try:
        pool = Pool.model_validate(data)
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: {_first_problem(error, data)}") from None
    names = [spec.name for spec in pool.experts]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"{path}: experts.{i}.name: {name!r} is there twice")
    specs = tuple(_find_model(spec, path, f"experts.{i}.model") for i, spec in enumerate(pool.experts))
    return pool.model_copy(update={"path": path, "experts": specs})


def make_expert(spec: ExpertSpec, spend_cap: SpendCap) -> Expert:
    """The expert that a spec describes; local models load when they are first asked.

    Raises:
        InputError: an environment variable that it needs is not set.
    """
    if isinstance(spec, OpenAISpec):
        from experts.backends.openai import OpenAIExpert

        return OpenAIExpert(spec, spend_cap)
    if isinstance(spec, HuggingFaceSpec):
        from experts.backends.huggingface import HuggingFaceExpert

        return HuggingFaceExpert(spec, spend_cap)
    if isinstance(spec, VllmSpec):
        from experts.backends.vllm import VllmExpert

        return VllmExpert(spec, spend_cap)
    raise TypeError(f"no backend for {type(spec).__name__}")


def make_experts(pool: Pool, names: Sequence[str] | None, spend_cap: SpendCap) -> list[Expert]:
    """The experts of a pool with these names, all where None. They pay from one spend cap."""
    return [_named(pool, spec, spend_cap) for spec in pool.select(names)]


def keys_for(spec: ExpertSpec) -> Callable[[Query], str]:
    """What each answer is kept under: a hash of all that shapes it. Prices, addresses and batch sizes do not."""
    identity = hashlib.sha256(_identity(spec).encode()).digest()
    return lambda query: hashlib.sha256(identity + spec.render(query).encode()).hexdigest()


def _named(pool: Pool, spec: ExpertSpec, spend_cap: SpendCap) -> Expert:
    try:
        return make_expert(spec, spend_cap)
    except InputError as error:
        raise InputError(f"{pool.path}: expert {spec.name!r}: {error}") from None


def _identity(spec: ExpertSpec) -> str:
    fields = {"name", "backend", "model", "revision", "max_tokens", "system", "chat", "generation", "dtype", "engine"}
    identity = spec.model_dump(mode="json", include=fields)
    if spec.directory is not None:
        identity["model"] = fingerprint(spec.directory)
    return json.dumps(identity, sort_keys=True)


def fingerprint(directory: Path, samples: int = 64, sample_bytes: int = 65536) -> str:
    """A hash of a model directory: names, sizes and evenly spaced samples of its files, quick for large weights."""
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


def _find_model(spec: Any, path: Path, field: str) -> Any:
    """The spec with the directory of its local model, where it has one."""
    if isinstance(spec, OpenAISpec):
        return spec
    directory = (path.parent / Path(spec.model).expanduser()).resolve()
    if (directory / "config.json").is_file():
        return spec.model_copy(update={"directory": directory})
    is_hub_name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", spec.model) is not None
    if directory.exists() or not is_hub_name:
        raise InputError(f"{path}: {field}: {spec.model!r} is no model directory (no config.json in it)")
    return spec


def _secrets(node: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Places where a key seems to be written down: the field, and what is wrong without the value."""
    items: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    elif isinstance(node, str) and SECRET_VALUES.search(node):
        yield field, "looks like a key written down (its value is not shown)"
    for name, value in items:
        here = f"{field}.{name}" if field else str(name)
        if isinstance(name, str) and SECRET_NAMES.search(name) and value is not None:
            yield here, "a key must not be written down (its value is not shown)"
        yield from _secrets(value, here)


def _first_problem(error: pydantic.ValidationError, data: Any) -> str:
    """field: message (value), from pydantic's first error; the union's tag is no part of the field."""
    first = error.errors(include_url=False)[0]
    backends = ("openai", "huggingface", "vllm")
    location = [part for i, part in enumerate(first["loc"]) if not (i == 2 and part in backends)]
    field = ".".join(str(part) for part in location) or "the file"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("missing", "value_error") or isinstance(first["input"], dict | list):
        return f"{field}: {message}"
    return f"{field}: {message}, not {_shown(first['input'], location)}"


def _shown(value: Any, location: Sequence[Any]) -> str:
    """A value for an error message; what may be a secret is not shown."""
    hidden = any("key" in str(part).lower() for part in location)
    return "the value given (not shown)" if hidden else repr(value)[:80]
