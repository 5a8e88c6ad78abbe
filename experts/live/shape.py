"""Gives what servers send the shape that OpenAI's API promises: what does not fit is dropped, the rest stays."""

from __future__ import annotations

import json
import math
from typing import Any

from experts.backends.reply import text_and_reasoning

MESSAGE_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")


def delta_of(delta: dict[str, Any]) -> dict[str, Any]:
    """A message, or a part of one; texts that come in parts, as Mistral sends them, are joined."""
    out = {name: value for name, value in delta.items() if name not in ("role", "tool_calls", "function_call")}
    if delta.get("role"):
        out["role"] = "assistant"
    for name in MESSAGE_TEXTS:
        if name in delta and not isinstance(text := delta[name], str):
            out[name], reasoning = text_and_reasoning(text) if text else (None, "")
            if reasoning:
                out["reasoning_content"] = (out.get("reasoning_content") or "") + reasoning
    calls = delta.get("tool_calls")
    if isinstance(calls, list) and (own := [_call_of(call) for call in calls if isinstance(call, dict)]):
        out["tool_calls"] = own
    if isinstance(delta.get("function_call"), dict):
        out["function_call"] = _function_of(delta["function_call"])
    return out


def reason_of(reason: str | None) -> str | None:
    """A finish reason; what OpenAI's API does not know is an ordinary end."""
    return reason if reason is None or reason in FINISH_REASONS else "stop"


def logprobs_of(logprobs: Any) -> dict[str, Any] | None:
    """Log-probabilities of a choice."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return {"content": _tokens_of(content, top=True), "refusal": None} if isinstance(content, list) else None


def _call_of(call: dict[str, Any]) -> dict[str, Any]:
    out = {name: value for name, value in call.items() if name not in ("index", "id", "type", "function")}
    if _is_whole(call.get("index")):
        out["index"] = call["index"]
    if isinstance(call.get("id"), str):
        out["id"] = call["id"]
    if call.get("type"):
        out["type"] = "function"
    if isinstance(call.get("function"), dict):
        out["function"] = _function_of(call["function"])
    return out


def _function_of(function: dict[str, Any]) -> dict[str, Any]:
    out = {name: function[name] for name in ("name", "arguments") if isinstance(function.get(name), str)}
    if isinstance(function.get("arguments"), dict):  # as Ollama sends them
        out["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return out


def _tokens_of(tokens: Any, top: bool) -> list[dict[str, Any]]:
    out = []
    for token in tokens if isinstance(tokens, list) else ():
        if isinstance(token, dict) and isinstance(token.get("token"), str) and _is_number(token.get("logprob")):
            data = token.get("bytes")
            is_data = isinstance(data, list) and all(map(_is_whole, data))
            own = {"token": token["token"], "logprob": token["logprob"], "bytes": data if is_data else None}
            out.append(own | ({"top_logprobs": _tokens_of(token.get("top_logprobs"), top=False)} if top else {}))
    return out


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
