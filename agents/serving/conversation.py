"""Reads a conversation: the text that decides about experts, what an answer needs, and which conversation it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from experts.backends.reply import clean_text

Messages = Sequence[dict[str, Any]]
DIGEST_CHARS = 240  # of the first and of the latest earlier turn, which say what the conversation is about
CHARS_PER_TOKEN = 3  # a low estimate, so that a prompt that may be too long is not sent


def query_text(messages: Messages) -> str:
    """What the encoder sees: the last turn of the user, and before it a digest of the conversation so far.

    The digest is the beginning of the user's first turn and of the turn before the last. A single turn is seen as it
    is, exactly as the questions of a table are.
    """
    turns = user_turns(messages)
    if not turns:
        return _text_of(messages[-1])
    earlier = [turn[:DIGEST_CHARS] for turn in dict.fromkeys((turns[0], turns[-2]) if len(turns) > 1 else ())]
    return "\n\n".join([*earlier, turns[-1]])


def earlier_text(messages: Messages) -> str | None:
    """The conversation up to the turn before the last, as the encoder saw it then; None for a single turn."""
    places = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return query_text(messages[: places[-2] + 1]) if len(places) > 1 else None


def user_turns(messages: Messages) -> list[str]:
    """The texts of the user's turns."""
    return [_text_of(message) for message in messages if message["role"] == "user"]


def needs_of(messages: Messages, settings: Mapping[str, Any]) -> list[str]:
    """What an expert must be able to do for these messages and settings, in the words of pool.yaml's `can`."""
    needs = []
    if settings.get("tools") or any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
        needs.append("tools")
    if any(part.get("type") == "image_url" for message in messages for part in _parts(message)):
        needs.append("vision")
    if (settings.get("response_format") or {}).get("type", "text") != "text":
        needs.append("json")
    if settings.get("logprobs") or settings.get("top_logprobs"):
        needs.append("logprobs")
    return needs


def prompt_tokens(messages: Messages, settings: dict[str, Any]) -> int:
    """An estimate of the prompt's tokens, tools and schemas included."""
    chars = sum(len(_text_of(message)) + len(_calls_of(message)) for message in messages)
    chars += sum(len(json.dumps(settings[name])) for name in ("tools", "response_format") if name in settings)
    return chars // CHARS_PER_TOKEN + 4 * len(messages)


def conversation_key(key_id: int, messages: Messages) -> str | None:
    """Names the conversation that a request goes on with: who asks, the last answer in it and the turn before that.
    None where there is no answer yet."""
    places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return _digest(key_id, messages[: places[-1]], messages[places[-1]]) if places else None


def next_key(key_id: int, messages: Messages, answer: dict[str, Any]) -> str:
    """The `conversation_key` of a request that goes on after this answer, an assistant's message."""
    return _digest(key_id, messages, answer)


def in_tool_round(messages: Messages) -> bool:
    """Whether this goes on after tool calls of an expert, which alone knows what it wanted of them."""
    return messages[-1]["role"] == "tool"


def _digest(key_id: int, before: Messages, answer: dict[str, Any]) -> str:
    turns = [_text_of(message) for message in before if message["role"] == "user"]
    calls = [call.get("id") for call in answer.get("tool_calls") or ()]
    parts = [key_id, len(turns), turns[-1:], " ".join(_text_of(answer).split()), calls]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _calls_of(message: dict[str, Any]) -> str:
    return json.dumps(message["tool_calls"]) if message.get("tool_calls") else ""


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _text_of(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return clean_text(content)
    return clean_text("\n".join(part["text"] for part in _parts(message) if isinstance(part.get("text"), str)))
