"""Reads live replies: whole ones and the parts of streamed ones become the same OpenAI-shaped completion."""

from __future__ import annotations

import json
import re
import time
import uuid
from typing import Any

from experts.backends.reply import clean_text, finish_reason_of, read_json
from experts.live.shape import MESSAGE_TEXTS, delta_of, logprobs_of, reason_of
from experts.usage import Usage, reported_usage

_HALVES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")  # of surrogate pairs, which may be without the other half


class Assembly:
    """The reply that the parts of a stream add up to.

    Attributes:
        usage: as reported; None if it was not.
        finish_reason: None before the last part.
        has_content: whether there was any text, reasoning or call of a tool.
        written: the parts that had, as servers send about one a token.
    """

    def __init__(self, name: str, keeps_logprobs: bool):
        self.usage: Any = None
        self.finish_reason: Any = None
        self.has_content = False
        self.written = 0
        self._name, self.keeps_logprobs = name, keeps_logprobs
        self._head: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: dict[str, list[Any]] = {}

    def add(self, part: dict[str, Any]) -> dict[str, Any] | None:
        """Adds one part of the stream. What to pass on of it, with the expert's name and without usage, or None."""
        usage = reported_usage(part)
        if isinstance(usage, dict):
            self.usage = (self.usage or {}) | {name: value for name, value in usage.items() if value is not None}
        choices = part.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return None
        if not self._head:
            self._head = head(part, self._name)
        return {**self._head, "object": "chat.completion.chunk", "choices": [self._add_choice(choice)]}

    def _add_choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        reason, logprobs = choice.get("finish_reason"), choice.get("logprobs")
        delta = next((choice[name] for name in ("delta", "message") if isinstance(choice.get(name), dict)), None)
        if delta is None:  # of /completions
            delta = {"content": choice["text"]} if isinstance(choice.get("text"), str) else {}
        delta = delta_of(delta)
        if logprobs and isinstance(logprobs, dict):
            self._add_logprobs(logprobs)
        if self._add_delta(delta):
            self.has_content = True
            self.written += 1
        if reason and isinstance(reason, str):
            self.finish_reason = reason = finish_reason_of(reason)
        shown = reason_of(reason) if reason and isinstance(reason, str) else None
        out = {"index": 0, "delta": delta, "finish_reason": shown}
        return out | {"logprobs": chat_logprobs(logprobs)} if self.keeps_logprobs else out

    def _add_delta(self, delta: dict[str, Any]) -> bool:
        """Whether it has any content."""
        has_content = False
        for name in MESSAGE_TEXTS:
            if text := delta.get(name):
                self._texts.setdefault(name, []).append(text)
                has_content = True
        for position, call in enumerate(delta.get("tool_calls", ())):
            self._add_call(call, position)
            has_content = True
        if "function_call" in delta:
            self._add_call({"function": delta["function_call"], "type": "function_call"}, 0)
            has_content = True
        return has_content

    def _add_call(self, call: dict[str, Any], position: int) -> None:
        """Adds a part of a tool's call, and its index if the server gives none, or one for all."""
        index = call.get("index", position)
        known = self._calls.get(index, {}).get("id")
        if known and call.get("id") and call["id"] != known:
            index = len(self._calls)
        call["index"] = index
        whole = self._calls.setdefault(index, {"arguments": []})
        whole.update({name: call[name] for name in ("id", "type") if call.get(name)})
        function = call.get("function", {})
        if function.get("name"):
            whole["name"] = function["name"]
        whole["arguments"].append(function.get("arguments", ""))

    def _add_logprobs(self, logprobs: dict[str, Any]) -> None:
        for name in ("content", "token_logprobs", "tokens"):
            if isinstance(logprobs.get(name), list):
                self._logprobs.setdefault(name, []).extend(logprobs[name])

    def text(self) -> str:
        """All that was written so far."""
        calls = ["".join([call.get("name", ""), *call["arguments"]]) for call in self._calls.values()]
        return "".join("".join(texts) for texts in self._texts.values()) + "".join(calls)

    def body(self) -> dict[str, Any]:
        """The chat completion, with its log-probabilities."""
        message: dict[str, Any] = {"role": "assistant", "content": None}
        message |= {name: "".join(texts) for name, texts in self._texts.items()}
        calls = [
            {
                "id": call.get("id") or f"call_{uuid.uuid4().hex[:24]}",
                "type": "function",
                "function": {"name": call.get("name", ""), "arguments": "".join(call["arguments"])},
            }
            for _, call in sorted(self._calls.items())
        ]
        if calls and any(call.get("type") == "function_call" for call in self._calls.values()):
            message["function_call"] = calls[0]["function"]
        elif calls:
            message["tool_calls"] = calls
        elif message["content"] is None:
            message["content"] = ""
        reason = self.finish_reason or ("tool_calls" if calls else "stop")
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": self._logprobs or None}
        top = self._head or head({}, self._name)
        return {**top, "object": "chat.completion", "choices": [choice], "usage": self.usage}


def read_value(data: bytes) -> dict[str, Any] | None:
    """The JSON object in a reply or an event, whose texts can all be written; None if there is no such thing."""
    value = read_json(data)
    if value is not None and _HALVES.search(data):
        value = read_json(clean_text(json.dumps(value, ensure_ascii=False)).encode())
    return value


def head(value: dict[str, Any], name: str) -> dict[str, Any]:
    """What a reply has beside its choices."""
    created, own_id = value.get("created"), value.get("id")
    known = {
        "id": own_id if isinstance(own_id, str) and own_id else f"chatcmpl-{uuid.uuid4().hex}",
        "created": created if isinstance(created, int) and not isinstance(created, bool) else int(time.time()),
        "model": name,
    }
    fingerprint = value.get("system_fingerprint")
    return known | {"system_fingerprint": fingerprint} if isinstance(fingerprint, str) else known


def chat_logprobs(logprobs: Any) -> dict[str, Any] | None:
    """The log-probabilities of a chat, also from those of /completions."""
    if isinstance(logprobs, dict) and "token_logprobs" in logprobs:
        tokens, values = (logprobs.get(name) for name in ("tokens", "token_logprobs"))
        if isinstance(tokens, list) and isinstance(values, list):
            pairs = zip(tokens, values, strict=False)
            logprobs = {"content": [{"token": token, "logprob": value} for token, value in pairs]}
    return logprobs_of(logprobs)


def usage_body(usage: Usage) -> dict[str, Any]:
    """The usage as OpenAI's API has it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
