"""Requests and errors of the server in the shapes of OpenAI's API: what is read, what is passed on, what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pydantic

MOST_MESSAGES = 2_000
MOST_PARTS = 1_000  # of a message
MOST_TOKENS = 1_000_000
MOST_DEPTH = 32
MOST_VALUES = 100_000  # in a body: a small one may hold millions, which would take everybody's time
UNCOUNTED_BYTES = 2 * MOST_VALUES  # a body that is no longer cannot hold more
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)  # its end is optional, so that the time is linear
PASSED_ON = {  # what a model may make something of; the rest of a request is the server's business
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "seed",
    "stop",
    "temperature",
    "top_p",
    "logprobs",
    "top_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "reasoning_effort",
    "verbosity",
}


class ApiError(Exception):
    """An answer that is an error, as OpenAI's clients read it."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        kind = "insufficient_quota" if self.code == "insufficient_quota" else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Loose(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", strict=True)


class _Part(_Loose):
    type: Literal["text", "image_url", "refusal"]
    text: str | None = None
    image_url: dict[str, Any] | None = None

    @pydantic.model_validator(mode="after")
    def _has_its_content(self) -> _Part:
        if self.type == "text" and self.text is None:
            raise ValueError("a text part needs `text`")
        if self.type == "image_url" and not isinstance((self.image_url or {}).get("url"), str):
            raise ValueError("an image part needs `image_url.url`")
        return self


class _ToolCall(_Loose):
    id: str
    type: Literal["function", "custom"] = "function"


class _Message(_Loose):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[_Part], pydantic.Field(max_length=MOST_PARTS)] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None

    @pydantic.model_validator(mode="after")
    def _says_something(self) -> _Message:
        if self.content is None and not (self.role == "assistant"):
            raise ValueError(f"a message of role {self.role} needs `content`")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("a message of role tool needs `tool_call_id`")
        return self


class _StreamOptions(_Loose):
    include_usage: bool | None = None


class _Tool(_Loose):
    type: Literal["function", "custom"]


class _ResponseFormat(_Loose):
    type: Literal["text", "json_object", "json_schema"]


class ChatCompletionRequest(pydantic.BaseModel):
    """A request of `/v1/chat/completions`; fields that no model here knows are refused, not dropped."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: Annotated[str, pydantic.Field(min_length=1, max_length=256)]
    messages: Annotated[list[_Message], pydantic.Field(min_length=1, max_length=MOST_MESSAGES)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Literal[1] | None = None
    max_tokens: Annotated[int, pydantic.Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, pydantic.Field(ge=1, le=MOST_TOKENS)] | None = None
    tools: Annotated[list[_Tool], pydantic.Field(max_length=512)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: _ResponseFormat | None = None
    seed: Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], pydantic.Field(max_length=16)] | None = None
    temperature: Annotated[float, pydantic.Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, pydantic.Field(ge=0, le=20)] | None = None
    presence_penalty: Annotated[float, pydantic.Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, pydantic.Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None
    reasoning_effort: Annotated[str, pydantic.Field(max_length=32)] | None = None
    verbosity: Annotated[str, pydantic.Field(max_length=32)] | None = None
    modalities: list[Literal["text"]] | None = None
    # about the caller's account at OpenAI: accepted, and of no effect here
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @property
    def most_tokens(self) -> int | None:
        """The most output tokens that the client asks for; None: it leaves that to the expert."""
        named = [n for n in (self.max_tokens, self.max_completion_tokens) if n is not None]
        return min(named, default=None)


class FeedbackRequest(pydantic.BaseModel):
    """What the user thinks of an answer."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    decision: Annotated[str, pydantic.Field(min_length=1, max_length=64, pattern="^[!-~]+$")]  # as databases take it
    score: Annotated[float, pydantic.Field(ge=0, le=1)]


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises ApiError."""
    if len(body) > UNCOUNTED_BYTES:
        shape = _TEXT.sub(b"", body)
        if sum(map(shape.count, (b",", b"[", b"{"))) > MOST_VALUES:
            raise ApiError(400, f"the body holds more than {MOST_VALUES:,} values", "too_large")
    try:
        value = json.loads(body, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):  # text that is no UTF-8 is a ValueError, too
        raise ApiError(400, "the body is not valid JSON", "invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", "invalid_json")
    if any(depth > MOST_DEPTH for depth in _depths(value)):
        raise ApiError(400, f"the body is nested more than {MOST_DEPTH} deep", "invalid_json")
    return value


def parse(model: type[pydantic.BaseModel], fields: dict[str, Any]) -> Any:
    """The request that the fields of a body make. Raises ApiError, which names the first field that is wrong."""
    unknown = next((name for name in fields if name not in model.model_fields), None)
    if unknown is not None:  # told here, as there may be very many
        place = unknown.encode("utf-8", "replace").decode()[:100]
        raise ApiError(400, f"{place}: there is no such field", "invalid_value", place)
    try:
        return model.model_validate(fields)
    except pydantic.ValidationError as error:
        first = min(error.errors(include_url=False, include_input=False), key=lambda one: len(one["loc"]))
        place = ".".join(str(part) for part in first["loc"])[:100]
        raise ApiError(400, f"{place or 'body'}: {first['msg']}", "invalid_value", place or None) from None


def passed_on(fields: dict[str, Any]) -> dict[str, Any]:
    """Of a request's fields those that go to an expert, as they came."""
    return {name: fields[name] for name in PASSED_ON if fields.get(name) is not None}


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(text)
    return value


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _depths(value: Any) -> Iterator[int]:
    """The depth of every list and object in a value."""
    stack = [(value, 1)]
    while stack:
        one, depth = stack.pop()
        if isinstance(one, dict | list):
            yield depth
            stack += [(part, depth + 1) for part in (one.values() if isinstance(one, dict) else one)]
