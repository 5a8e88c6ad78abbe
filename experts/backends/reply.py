"""Reads a server's reply: whatever its body holds becomes one checked `Reply`, or one error that says what is wrong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from experts.reasoning import split_reasoning
from experts.usage import reported_usage
from leeroo_env.cli import printable

FINISH_REASONS = {  # what servers call them, in OpenAI's words
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "max_length": "length",
    "token_limit": "length",
    "safety": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "content-filter": "content_filter",
    "contentfilter": "content_filter",
    "filtered": "content_filter",
    "end_turn": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "complete": "stop",
    "completed": "stop",
}
PART_TEXTS = ("text", "thinking", "reasoning", "content", "summary", "value")  # where a part has its text
REASONING_PARTS = ("thinking", "reasoning", "thought", "summary_text")
SHOWN_CHARS = 120


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Attributes:
        text: the answer, without reasoning; "" if there is none.
        reasoning: what came before it.
        finish_reason: in OpenAI's words where they are known; None if the server does not say.
        refusal: why the model would not answer, if it says so in a field of its own.
        tokens: text and log-probability of each token written; empty if the server does not say.
        usage: the field `usage`, unchecked: `experts.usage.normalise_usage` reads it.
    """

    text: str
    reasoning: str
    finish_reason: str | None
    refusal: str
    usage: Any
    tokens: tuple[tuple[str, float], ...] = ()

    @property
    def logprob(self) -> float | None:
        """The mean log-probability of the tokens written; None if the server does not say."""
        return math.fsum(value for _, value in self.tokens) / len(self.tokens) if self.tokens else None


class NoCompletion(ValueError):
    """The body is no completion: HTML, another API, an unknown shape."""


class _Message(pydantic.BaseModel):
    content: Any = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    thinking: Any = None


class _Choice(pydantic.BaseModel):
    message: _Message | None = None
    text: Any = None
    finish_reason: Any = None
    logprobs: Any = None


class _Completion(pydantic.BaseModel):
    choices: list[_Choice] = pydantic.Field(min_length=1)


def read_reply(body: bytes) -> Reply:
    """The reply in a body of a chat completion or a completion. Raises NoCompletion."""
    value = read_json(body)
    try:
        return reply_in(value or {})
    except NoCompletion:
        raise no_completion(body) from None


def reply_in(value: Mapping[str, Any]) -> Reply:
    """The reply in a chat completion or a completion. Raises NoCompletion."""
    try:
        completion = _Completion.model_validate(value)
    except pydantic.ValidationError:
        raise NoCompletion("the server's reply is no chat completion") from None
    choice = completion.choices[0]
    message = choice.message or _Message(content=choice.text)
    text, parts_reasoning = text_and_reasoning(message.content)
    tagged_reasoning, answer = split_reasoning(text)
    own = next((r for r in (message.reasoning_content, message.reasoning, message.thinking) if r), None)
    reasoning = "\n".join(part for part in (text_and_reasoning(own)[0], parts_reasoning, tagged_reasoning) if part)
    reason = choice.finish_reason
    return Reply(
        text=answer if answer.strip() else "",
        reasoning=reasoning,
        finish_reason=finish_reason_of(reason) if isinstance(reason, str) and reason else None,
        refusal=text_and_reasoning(message.refusal)[0],
        usage=reported_usage(value),
        tokens=_token_logprobs(choice.logprobs),
    )


def no_completion(body: bytes) -> NoCompletion:
    """The error of a body that is none."""
    return NoCompletion(f"the server's reply is no chat completion: {_shown(body)}")


def read_json(body: bytes) -> Any:
    """The JSON object in a body, in which NaN and infinity are null; None if there is no such thing."""
    try:
        value = json.loads(body, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def error_in(body: bytes) -> tuple[int, str] | None:
    """Status and message of an error that a gateway put into a body with status 200; None if there is none."""
    return error_of(read_json(body))


def error_of(value: dict[str, Any] | None) -> tuple[int, str] | None:
    """The same in a value that is read."""
    if value is None or value.get("choices"):
        return None
    error = value.get("error") or value.get("errors")
    if not error:
        if value.get("object") != "error" and value.get("type") != "error":
            return None
        error = value
    fields = error if isinstance(error, dict) else {"message": error}
    message = fields.get("message") or fields.get("detail") or error
    words = message if isinstance(message, str) else json.dumps(message)[:500]
    for name in ("code", "status", "status_code"):
        for owner in (fields, value):
            if (status := _status(owner.get(name))) is not None:
                return status, words
    kind = f"{words} {fields.get('type')} {fields.get('code')}".lower()
    return 429 if re.search(r"rate.?limit|too many requests", kind) else 502, words


def clean_text(text: str) -> str:
    """The text with every half of a surrogate pair replaced, so that it can be written anywhere."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _token_logprobs(logprobs: Any) -> tuple[tuple[str, float], ...]:
    """Text and log-probability of the tokens of a chat completion (`content`) or a completion (`token_logprobs` and
    `tokens`); none where one of the numbers is missing."""
    if not isinstance(logprobs, dict):
        return ()
    listed = logprobs.get("content") or logprobs.get("token_logprobs")
    if not isinstance(listed, list):
        return ()
    texts = logprobs.get("tokens") if listed is not logprobs.get("content") else None
    texts = texts if isinstance(texts, list) and len(texts) == len(listed) else [""] * len(listed)
    pairs = [
        (one.get("token"), one.get("logprob")) if isinstance(one, dict) else (text, one)
        for one, text in zip(listed, texts, strict=True)
    ]
    known = [
        (text if isinstance(text, str) else "", v)
        for text, v in pairs
        if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and v <= 0
    ]
    return tuple(known) if len(known) == len(pairs) else ()


def _status(value: Any) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) == 3:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599 else None


def finish_reason_of(reason: str) -> str:
    """A finish reason in OpenAI's words, where they are known."""
    reason = printable(clean_text(reason))[:40].lower()
    return FINISH_REASONS.get(reason, reason)


def text_and_reasoning(content: Any) -> tuple[str, str]:
    """Text and reasoning of a message's content: a string, a number, a part, or a list of these."""
    if content is None:
        return "", ""
    if isinstance(content, str):
        return clean_text(content), ""
    if isinstance(content, list):
        texts, reasonings = zip(*map(text_and_reasoning, content), strict=True) if content else ((), ())
        return "".join(texts), "".join(reasonings)
    if isinstance(content, dict):
        text, reasoning = text_and_reasoning(next((content[name] for name in PART_TEXTS if name in content), None))
        return ("", text + reasoning) if content.get("type") in REASONING_PARTS else (text, reasoning)
    return json.dumps(content), ""


def _shown(body: bytes) -> str:
    text = printable(clean_text(body[: 4 * SHOWN_CHARS].decode("utf-8", "replace")))
    return f"{text[:SHOWN_CHARS]}{'...' if len(text) > SHOWN_CHARS else ''}" if text else "it is empty"
