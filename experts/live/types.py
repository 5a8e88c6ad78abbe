"""Defines what a live call takes and brings: requests, completions, chunks, errors, and the experts' interface."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from experts.specs import ExpertSpec
from experts.usage import Usage

if TYPE_CHECKING:
    from experts.live.stream import Stream

IMAGE_TOKENS = 50_000  # more than any provider counts for an image; the most known is 48,169, of gpt-4o-mini
TOOLS_TOKENS = 1024  # the most that providers add to a prompt to explain tools
Kind = Literal["connect", "timeout", "rate limit", "server", "bad request", "unreadable", "interrupted", "empty"]
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class ChatRequest:
    """One request, whichever expert answers it.

    Attributes:
        messages: as OpenAI's API has them, images and tools' messages included.
        settings: what else is passed on, such as tools, response_format, temperature and stop; those that are not in
            `experts.live.body.PASSED_ON` are left out.
        max_tokens: the most tokens of the answer.
        size: of messages and settings; found once, and kept by `dataclasses.replace` for other `max_tokens`.
    """

    messages: Messages
    settings: dict[str, Any]
    max_tokens: int
    size: Size | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.size is None or not self.size.is_of(self.messages, self.settings):
            object.__setattr__(self, "size", Size(self.messages, self.settings))

    @property
    def images(self) -> int:
        """The number of images."""
        assert self.size is not None
        return self.size.images

    @property
    def most_prompt_tokens(self) -> float:
        """An upper bound of the prompt's tokens, without what an expert adds; inf if there is none. See `Size`."""
        assert self.size is not None
        return self.size.most_prompt_tokens


@dataclass(frozen=True)
class Size:
    """How much a request's messages and settings are."""

    messages: Messages
    settings: dict[str, Any]

    def is_of(self, messages: Messages, settings: dict[str, Any]) -> bool:
        return messages is self.messages and settings is self.settings

    @functools.cached_property
    def images(self) -> int:
        return sum(part.get("type") == "image_url" for part in _parts(self.messages))

    @functools.cached_property
    def most_prompt_tokens(self) -> float:
        """An upper bound of the prompt's tokens, without what an expert adds; inf if there is none.

        A token has at least one byte of the messages as JSON, in which names, roles and punctuation stand for what chat
        templates add. Settings count twice, since templates may indent tools and schemas. An image has at most
        `IMAGE_TOKENS`. Other files have no bound.
        """
        if any(part.get("type") not in ("text", "refusal", "image_url") for part in _parts(self.messages)):
            return math.inf
        settings = {name: value for name, value in self.settings.items() if isinstance(value, dict | list | str)}
        tools = TOOLS_TOKENS if self.settings.get("tools") or self.settings.get("functions") else 0
        tokens = json_bytes(_without_images(self.messages) if self.images else self.messages)
        return tokens + 2 * (json_bytes(settings) if settings else 0) + tools + IMAGE_TOKENS * self.images


def json_bytes(value: Any) -> int:
    """The length of a value as JSON in UTF-8."""
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def text_of(content: Any) -> str:
    """The text of a message's content."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, dict) and "text" in part)


def _parts(messages: Messages) -> Iterator[dict[str, Any]]:
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            yield from (part for part in content if isinstance(part, dict))


def _without_images(messages: Messages) -> Messages:
    def parts(content: Any) -> Any:
        return [p for p in content if p.get("type") != "image_url"] if isinstance(content, list) else content

    return [message | {"content": parts(message.get("content"))} for message in messages]


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        body: an OpenAI chat completion, whose `model` is the expert's name and whose `usage` has checked counts.
        text: the answer without reasoning; "" where tools are called instead.
        reasoning: what came before it.
        finish_reason: in OpenAI's words where they are known.
        tool_calls: whether the answer calls tools.
        usage: tokens in disjoint buckets.
        cost_usd: what the call costs.
        latency_s: from the call to its last byte.
        logprob: the mean log-probability of the tokens written; None where the server does not say.
        confidence: the probability in [0, 1] that the answer is right, as the expert states it; None where it does not.
    """

    body: dict[str, Any]
    text: str
    reasoning: str
    finish_reason: str | None
    tool_calls: bool
    usage: Usage
    cost_usd: float
    latency_s: float
    logprob: float | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Chunk:
    """One part of a streamed answer: an OpenAI chat.completion.chunk, without usage."""

    data: dict[str, Any]


class UpstreamError(Exception):
    """A call failed.

    Attributes:
        kind: "connect": no connection; "timeout"; "rate limit"; "server": it failed, or refused its operator;
            "bad request": it refused the request; "unreadable": its reply is no completion, or too long;
            "interrupted": the connection broke off; "empty": a reply without an answer.
        status: of the reply, as far as there was one.
        retry_after_s: how long the server asks to be left alone.
        may_be_billed: whether the call may be billed.
        cost_usd: what it is billed, or at most; 0 if it is not.
        delivered_usd: of that, an estimate of what prompt and passed-on text cost; 0 before the first chunk.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        may_be_billed: bool = False,
        cost_usd: float = 0.0,
        delivered_usd: float = 0.0,
    ):
        super().__init__(message)
        self.kind: Kind = kind
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s
        self.may_be_billed = may_be_billed
        self.cost_usd = cost_usd
        self.delivered_usd = delivered_usd


class LiveExpert(Protocol):
    """An expert that answers one request in one attempt. For one event loop."""

    name: str

    @property
    def spec(self) -> ExpertSpec: ...

    async def load(self) -> None:
        """Loads a model of this process, which the first call does otherwise. Raises InputError."""
        ...

    def worst_usd(self, request: ChatRequest) -> float:
        """The most that one attempt can cost, in dollars; inf if that is not known."""
        ...

    async def complete(self, request: ChatRequest, timeout_s: float) -> Completion:
        """The answer. Raises UpstreamError. If it is cancelled, the call may be billed all the same."""
        ...

    def stream(self, request: ChatRequest, timeout_s: float, first_token_s: float) -> Stream:
        """Starts the call at once; see `Stream`."""
        ...

    async def close(self) -> None:
        """Breaks off what is under way."""
        ...
