"""Describes a pool of experts: how each is asked and what its calls cost (the schema of pool.yaml)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

import pydantic

from experts.confidence import REQUEST
from experts.extra_settings import (
    HUGGINGFACE,
    VLLM_ENGINE,
    VLLM_SAMPLING,
    check_allowed,
    check_limits,
    check_server_settings,
)
from experts.types import Chat, Query
from experts.usage import Limits, LongContext, Price
from leeroo_env.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self

SECRET_PARAMETER = re.compile(r"key|token|secret|passw|sig(nature)?$|auth|code$|cred", re.IGNORECASE)  # of an address
VARIANT_NAME = re.compile(r"[\w.+-]+")
TEMPLATE_TOKENS = 256  # the most that a chat template adds to a prompt
Dollars = Annotated[float, pydantic.Field(ge=0, le=1e9)]
Text = Annotated[str, pydantic.Field(min_length=1)]
VariableName = Annotated[str, pydantic.Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]
Ability = Literal["tools", "vision", "json", "logprobs"]


class StrictModel(pydantic.BaseModel):
    """Refuses unknown fields and converts no types."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Generation(StrictModel):
    """Sampling settings. `temperature` 0 is greedy decoding; null leaves it to the server, and is 0 on this machine."""

    temperature: float | None = pydantic.Field(default=0.0, ge=0)
    top_p: float | None = pydantic.Field(default=None, gt=0, le=1)
    seed: int | None = pydantic.Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[tuple[Text, ...], pydantic.Field(strict=False)] = ()
    extra: dict[str, Any] = {}  # passed to the backend unchanged; `experts.extra_settings` has what is refused

    @pydantic.field_validator("extra")
    @classmethod
    def _cannot_lift_limits(cls, extra: dict[str, Any]) -> dict[str, Any]:
        check_limits(extra)
        return extra


class LongContextPrice(StrictModel):
    """The price of a whole call whose prompt has more tokens than `above_tokens`."""

    above_tokens: int = pydantic.Field(gt=0, lt=2**31)
    usd_per_mtok_in: Dollars
    usd_per_mtok_out: Dollars


class Settings(StrictModel):
    """How an expert is asked: what its variants may change."""

    max_tokens: int = pydantic.Field(default=1024, gt=0, lt=2**31)
    prompt: str = "{text}"
    system: str | None = None
    generation: Generation = Generation()
    confidence: bool = False  # asks for the probability that the answer is right, which is taken out of the answer

    @pydantic.field_validator("prompt")
    @classmethod
    def _holds_text(cls, prompt: str) -> str:
        if "{text}" not in prompt:
            raise ValueError("should contain {text}, where the query goes")
        return prompt


class ExpertSpec(Settings):
    """The fields of every backend. A price is `usd_per_mtok_in` and `usd_per_mtok_out`, or `usd_per_second`."""

    name: Text
    model: Text
    revision: str | None = None
    parameters_b: float | None = pydantic.Field(default=None, gt=0)
    usd_per_mtok_in: Dollars | None = None
    usd_per_mtok_out: Dollars | None = None
    usd_per_mtok_cached: Dollars | None = None  # of prompt tokens read from a cache; null: half of usd_per_mtok_in
    usd_per_mtok_cache_write: Dollars | None = None  # of prompt tokens written to a cache; null: usd_per_mtok_in
    usd_per_mtok_reasoning: Dollars | None = None  # null: usd_per_mtok_out
    usd_per_second: Dollars | None = None
    timeout_s: float = pydantic.Field(
        default=120.0, gt=0, le=1e6
    )  # of one request; a price by the second bills no more
    context: int | None = pydantic.Field(default=None, gt=0, lt=2**31)  # tokens, prompt and answer; null: not known
    variants: dict[str, Settings] = {}  # by name; the loader makes each an expert of its own, "name@variant"
    directory: Path | None = pydantic.Field(default=None, exclude=True)  # of a local model, set by the loader

    @pydantic.field_validator("name")
    @classmethod
    def _can_be_stored(cls, name: str) -> str:
        if not name.strip() or name != name.encode("utf-8", "replace").decode():
            raise ValueError(f"{name!r} is no name")
        return name

    @pydantic.field_validator("variants", mode="before")
    @classmethod
    def _have_names(cls, variants: Any) -> Any:
        if not isinstance(variants, dict):
            raise ValueError("should be settings by name, such as short: {max_tokens: 64}")
        for name in variants:
            if not isinstance(name, str) or VARIANT_NAME.fullmatch(name) is None:
                raise ValueError(
                    f"{name!r} cannot name a variant; letters, digits and . + - _ can, in quotes where YAML would not "
                    "read a text, as of 64 and on"
                )
        return variants

    @pydantic.model_validator(mode="after")
    def _has_one_price(self) -> ExpertSpec:
        by_token = self.usd_per_mtok_in is not None, self.usd_per_mtok_out is not None
        if any(by_token) != all(by_token) or any(by_token) == (self.usd_per_second is not None):
            raise ValueError("give either usd_per_mtok_in and usd_per_mtok_out, or usd_per_second")
        for name in ("usd_per_mtok_cached", "usd_per_mtok_cache_write", "usd_per_mtok_reasoning"):
            if getattr(self, name) is not None and self.usd_per_second is not None:
                raise ValueError(f"{name} goes with usd_per_mtok_in, not with usd_per_second")
        return self

    @property
    def price(self) -> Price:
        return Price(
            self.usd_per_mtok_in or 0.0,
            self.usd_per_mtok_out or 0.0,
            self.usd_per_second or 0.0,
            self.timeout_s,
            self.usd_per_mtok_cached,
            self.usd_per_mtok_cache_write,
            self.usd_per_mtok_reasoning,
        )

    @property
    def abilities(self) -> frozenset[Ability]:
        """What the model can take beyond text."""
        return frozenset()

    @property
    def model_path(self) -> str:
        """What the backend loads: the local directory if there is one, else the model's name."""
        return self.model if self.directory is None else str(self.directory)

    @property
    def attempts(self) -> int:
        """The largest number of times that one call is sent."""
        return 1

    def variant(self, name: str) -> Self:
        """The expert "name@variant": this one with what the variant sets, field by field also in `generation`.

        Raises:
            pydantic.ValidationError: the backend refuses a setting.
        """
        changed = self.variants[name].model_dump(exclude_unset=True)
        generation = changed.get("generation", {})
        extra = self.generation.extra | generation.get("extra", {})
        generation = self.generation.model_dump() | generation | {"extra": extra}
        fields = changed | {"generation": generation, "name": f"{self.name}@{name}", "variants": {}}
        return self.model_validate(self.model_dump() | fields).model_copy(update={"directory": self.directory})

    def render(self, query: Query) -> str:
        """The prompt of a query."""
        return self.prompt.replace("{text}", query.text + (REQUEST if self.confidence else ""))

    def most_prompt_tokens(self, query: Query) -> int:
        """An upper bound of the prompt's tokens: a token has at least one byte, and a chat template adds a few."""
        if isinstance(query, Chat):
            return int(self.most_chat_tokens(query.most_tokens))
        return len(self.render(query).encode("utf-8", "replace")) + len((self.system or "").encode()) + TEMPLATE_TOKENS

    def most_chat_tokens(self, messages_tokens: float) -> float:
        """An upper bound of the prompt's tokens, for messages that have at most so many."""
        around = (self.system or "") + self.prompt + (REQUEST if self.confidence else "")
        return messages_tokens * self.prompt.count("{text}") + len(around.encode("utf-8", "replace")) + TEMPLATE_TOKENS

    def can_take(self, query: Query) -> bool:
        """Whether the model can do what a conversation needs, as far as pool.yaml says."""
        if not isinstance(query, Chat):
            return True
        return self.abilities.issuperset(query.needs) and (self.context is None or query.tokens < self.context)

    def limits(self, query: Query, max_tokens: int) -> Limits:
        """The most tokens that a call can take whose output has at most `max_tokens`."""
        tokenizer = getattr(self, "tokenizer", None)
        return Limits(self.name, self.most_prompt_tokens(query), max_tokens, tokenizer)

    def worst_usd(self, query: Query, max_tokens: int | None = None) -> float:
        """The most that one attempt of a call can cost, in dollars; `max_tokens` replaces the spec's."""
        return self.price.worst_usd(self.most_prompt_tokens(query), max_tokens or self.max_tokens)

    def affordable_tokens(self, query: Query, usd: float) -> int:
        """The most output tokens, up to `max_tokens`, that a call may write to cost at most `usd`; 0: not even one."""
        return self.price.affordable_tokens(self.most_prompt_tokens(query), self.max_tokens, usd)

    def may_afford(self, query: Query, usd: float) -> bool:
        """Whether `usd` may pay for a call, its prompt and one token; the expert itself may know more."""
        return self.affordable_tokens(query, usd) > 0


class OpenAISpec(ExpertSpec):
    """A model on a server with OpenAI's API. Its key is read from an environment variable that is named here."""

    backend: Literal["openai"]
    base_url: str | None = None  # such as http://localhost:8000/v1
    base_url_env: VariableName | None = None  # the variable that holds the address
    # without both: OPENAI_BASE_URL if that is set, else OpenAI's own address
    api_key_env: VariableName | None = "OPENAI_API_KEY"  # null: the server needs no key
    chat: bool = True  # false: /completions instead of /chat/completions
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    concurrency: int = pydantic.Field(default=8, gt=0, le=100_000)
    requests_per_minute: float | None = pydantic.Field(default=None, gt=0, le=1e9)  # of collect and selfplay
    max_retries: int = pydantic.Field(default=5, ge=0, le=1000)
    logprobs: bool = False  # asks for the tokens' log-probabilities, which tell how sure the model was
    tokenizer: str | None = None  # name or directory; counts tokens where the server reports none
    can: Annotated[tuple[Ability, ...], pydantic.Field(strict=False)] = ()  # what it takes beyond text, for live use
    long_context: LongContextPrice | None = None
    first_token_s: float = pydantic.Field(default=60.0, gt=0, le=1e6)  # the longest silence of a reply that is streamed

    @pydantic.field_validator("generation")
    @classmethod
    def _leaves_cost_alone(cls, generation: Generation) -> Generation:
        check_server_settings(generation.extra)
        return generation

    @pydantic.field_validator("base_url")
    @classmethod
    def _is_an_address_without_secrets(cls, url: str | None) -> str | None:
        if url is not None and (problem := _address_problem(url)):
            raise ValueError(problem)
        return url

    @pydantic.model_validator(mode="after")
    def _has_one_address(self) -> OpenAISpec:
        if self.base_url is not None and self.base_url_env is not None:
            raise ValueError("give base_url or base_url_env, not both")
        return self

    @pydantic.model_validator(mode="after")
    def _has_one_kind_of_price(self) -> OpenAISpec:
        if self.long_context is not None and self.usd_per_second is not None:
            raise ValueError("long_context goes with usd_per_mtok_in, not with usd_per_second")
        return self

    @property
    def price(self) -> Price:
        tier = self.long_context
        if tier is None:
            return super().price
        long_context = LongContext(tier.above_tokens, tier.usd_per_mtok_in, tier.usd_per_mtok_out)
        return dataclasses.replace(super().price, long_context=long_context)

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset((*self.can, "logprobs")) if self.logprobs else frozenset(self.can)

    @property
    def attempts(self) -> int:
        return 1 + self.max_retries


def _address_problem(url: str) -> str | None:
    """What is wrong with a server's address, in words that hold no secret of it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is no address such as http://localhost:8000/v1"
    parameters = parse_qsl(parts.query, True) + parse_qsl(parts.fragment, True)
    if parts.username is not None or any(SECRET_PARAMETER.search(name) for name, _ in parameters):
        return "holds a password or a key (not shown); put the address into a variable and name that with base_url_env"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or re.search(r"[\s\x00-\x1f]", url):
        return f"{url!r} is no address such as http://localhost:8000/v1"
    return None


class LocalSpec(ExpertSpec):
    """A model that runs on this machine."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    chat: bool | None = None  # null: use the tokenizer's chat template if it has one
    batch_size: int = pydantic.Field(default=16, gt=0)
    trust_remote_code: bool = False  # true: Python code among the model's files may run

    def may_afford(self, query: Query, usd: float) -> bool:
        """See `ExpertSpec`; here the prompt's tokens are counted when the expert is asked."""
        return self.price.affordable_tokens(1, self.max_tokens, usd) > 0


class HuggingFaceSpec(LocalSpec):
    """A causal language model of the transformers library."""

    backend: Literal["huggingface"]
    device: str = "cpu"

    @pydantic.field_validator("generation")
    @classmethod
    def _runs_no_code(cls, generation: Generation) -> Generation:
        check_allowed(generation.extra, HUGGINGFACE, "extra: ")
        return generation


class VllmSpec(LocalSpec):
    """A model in vLLM's offline engine. `engine` is passed to `vllm.LLM`; `experts.extra_settings` lists what can."""

    backend: Literal["vllm"]
    batch_size: int = pydantic.Field(default=256, gt=0)
    engine: dict[str, Any] = {}

    @pydantic.field_validator("generation")
    @classmethod
    def _runs_no_code(cls, generation: Generation) -> Generation:
        check_allowed(generation.extra, VLLM_SAMPLING, "extra: ")
        return generation

    @pydantic.field_validator("engine")
    @classmethod
    def _engine_runs_no_code(cls, engine: dict[str, Any]) -> dict[str, Any]:
        check_allowed(engine, VLLM_ENGINE, "")
        return engine


AnySpec = OpenAISpec | HuggingFaceSpec | VllmSpec
BACKENDS: dict[str, type[ExpertSpec]] = {"openai": OpenAISpec, "huggingface": HuggingFaceSpec, "vllm": VllmSpec}


class Pool(StrictModel):
    """A whole pool.yaml, in which each variant is an expert; `path` is the file it was read from."""

    experts: Annotated[
        tuple[Annotated[AnySpec, pydantic.Field(discriminator="backend")], ...],
        pydantic.Field(min_length=1, strict=False),
    ]
    path: Path = pydantic.Field(default=Path("pool.yaml"), exclude=True)

    def select(self, names: Sequence[str] | None) -> list[AnySpec]:
        """The specs of the named experts, in this order; all experts if None."""
        specs = {spec.name: spec for spec in self.experts}
        for name in names or ():
            if name not in specs:
                raise InputError(f"{self.path}: no expert named {name!r}; there are {', '.join(specs)}")
        return [specs[name] for name in (specs if names is None else dict.fromkeys(names))]
