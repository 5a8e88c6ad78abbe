"""Makes the body that a server is sent from a request and the settings of pool.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from experts.backends.server import limit_field, sampling_settings
from experts.confidence import REQUEST
from experts.conversation import ENDS, Turn, as_text, has_several_turns
from experts.live.types import ChatRequest, Messages, text_of
from experts.specs import ExpertSpec, OpenAISpec

SAMPLING = {  # in OpenAI's API, and what vLLM, llama.cpp and others add
    "bad_words",
    "dry_multiplier",
    "frequency_penalty",
    "logit_bias",
    "min_p",
    "mirostat",
    "mirostat_eta",
    "mirostat_tau",
    "presence_penalty",
    "repetition_penalty",
    "repeat_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
}
CHAT_ONLY = {
    "chat_template_kwargs",
    "function_call",
    "functions",
    "logprobs",
    "parallel_tool_calls",
    "reasoning",
    "reasoning_effort",
    "response_format",
    "thinking",
    "tool_choice",
    "tools",
    "top_logprobs",
    "verbosity",
}
# What a client may set. Another model, provider or tier, or what providers bill on top, would break the worst case.
PASSED_ON = SAMPLING | CHAT_ONLY | {"prompt_cache_key", "safety_identifier", "user"}
# What a server may not know, and what the answer can do without
DISPENSABLE = {"stream_options", "logprobs", "top_logprobs"} | (SAMPLING - {"stop", "stop_token_ids", "logit_bias"})


def not_passed_on(settings: Iterable[str]) -> list[str]:
    """The names of settings that no expert is sent; n: 1 and stream are the server's own."""
    return sorted(set(settings) - PASSED_ON)


def request_body(
    spec: OpenAISpec, request: ChatRequest, *, stream: bool, unknown: Iterable[str] = ()
) -> dict[str, Any]:
    """The body of one call. Settings in `unknown`, which the server has refused before, are left out."""
    own = {name: value for name, value in request.settings.items() if value is not None and name in PASSED_ON}
    if not spec.chat:
        own = _of_completion(own)
    body = {"model": spec.model, **sampling_settings(spec), **spec.generation.extra, **own}
    body[limit_field(spec)] = most_tokens(spec, request)
    messages = prepared(spec, request.messages, confidence=asks_confidence(spec, request, stream))
    if spec.chat:
        body["messages"] = messages
    else:
        turns = turns_of(messages)
        body["prompt"] = as_text(turns)
        if has_several_turns(turns) and "stop" not in body:
            body["stop"] = list(ENDS)
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    for name in unknown:
        body.pop(name, None)
    return body


def sent_text(body: dict[str, Any]) -> str:
    """All text of a body that the model reads, to count its tokens."""
    parts = [body["prompt"]] if "prompt" in body else [text_of(message.get("content")) for message in body["messages"]]
    shapes = [body[name] for name in ("tools", "functions", "response_format") if body.get(name)]
    calls = [message["tool_calls"] for message in body.get("messages", ()) if message.get("tool_calls")]
    return "\n".join([*parts, *(json.dumps(shape, ensure_ascii=False) for shape in shapes + calls)])


def most_tokens(spec: ExpertSpec, request: ChatRequest) -> int:
    """The most tokens of the answer."""
    return min(request.max_tokens, spec.max_tokens)


def asks_confidence(spec: ExpertSpec, request: ChatRequest, stream: bool) -> bool:
    """Whether the expert is asked how sure it is: only where that can be taken out of the answer."""
    shapes = ("tools", "functions", "response_format")
    return spec.confidence and not stream and not any(request.settings.get(name) for name in shapes)


def prepared(spec: ExpertSpec, messages: Messages, confidence: bool) -> Messages:
    """The messages as the expert is sent them: with its `system` if they have none, the last text in its `prompt`."""
    out = [message | {"role": "system"} if message.get("role") == "developer" else message for message in messages]
    if confidence or spec.prompt != "{text}":
        last = next((i for i in reversed(range(len(out))) if out[i].get("role") == "user"), None)
        content = None if last is None else plain_text(out[last].get("content"))
        if last is not None and content is not None:
            text = spec.prompt.replace("{text}", content + (REQUEST if confidence else ""))
            out[last] = out[last] | {"content": text}
    if spec.system and not any(message.get("role") == "system" for message in out):
        out.insert(0, {"role": "system", "content": spec.system})
    return out


def turns_of(messages: Messages) -> list[Turn]:
    """Role and text of each message."""
    return [(str(message.get("role")), text_of(message.get("content"))) for message in messages]


def plain_text(content: Any) -> str | None:
    """The text of a content that is one text; None where it is not."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        text = content[0].get("text")
        return text if content[0].get("type") == "text" and isinstance(text, str) else None
    return None


def _of_completion(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a chat as those of /completions."""
    out = {name: value for name, value in settings.items() if name not in CHAT_ONLY}
    if settings.get("logprobs"):
        out["logprobs"] = settings.get("top_logprobs") or 0
    return out
