"""A live call is kept as a question's answer only where the collector would have made the same call."""

from __future__ import annotations

from typing import Any

import pytest

from experts.live import ChatRequest
from experts.live.question import NoQuestion, question_of
from experts.specs import OpenAISpec

USER = {"role": "user", "content": "How far?"}


def spec(**fields: Any) -> OpenAISpec:
    common = {"name": "a", "backend": "openai", "model": "m", "usd_per_mtok_in": 1.0, "usd_per_mtok_out": 1.0}
    return OpenAISpec.model_validate({**common, "max_tokens": 100, **fields})


def read(
    of: OpenAISpec, messages: list[dict[str, Any]], stream: bool = False, max_tokens: int = 100, **settings: Any
) -> str:
    """The text, or why there is none in brackets."""
    try:
        return question_of(of, ChatRequest(messages, settings, max_tokens), stream, "length")
    except NoQuestion as error:
        return f"({error})"


@pytest.mark.parametrize(
    "of, messages, settings, text",
    [
        (spec(), [USER], {}, "How far?"),
        (spec(), [{"role": "user", "content": [{"type": "text", "text": "How far?"}]}], {}, "How far?"),
        (spec(prompt="Q: {text}"), [USER], {"logprobs": True, "user": "me"}, "How far?"),
        (spec(system="short"), [{"role": "system", "content": "short"}, USER], {}, "How far?"),
        (spec(system="short"), [{"role": "developer", "content": "long"}, USER], {}, "(system message)"),
        (spec(), [USER, {"role": "assistant", "content": "7 km"}], {}, "(conversation)"),
        (spec(), [{"role": "user", "content": [{"type": "image_url"}]}], {}, "(tools or images)"),
        (spec(), [{"role": "user", "content": "half \ud800"}], {}, "(text)"),
        (spec(), [{"role": "user", "content": "x" * 200_001}], {}, "(text)"),
        (spec(), [USER], {"temperature": 0, "response_format": {"type": "text"}, "tools": []}, "How far?"),
        (spec(generation={"stop": ["x"]}), [USER], {"stop": "x"}, "How far?"),
        (spec(generation={"extra": {"reasoning_effort": "low"}}), [USER], {"reasoning_effort": "high"}, "(settings)"),
        (spec(), [USER], {"seed": 1}, "(settings)"),
        (spec(confidence=True), [USER], {}, "How far?"),
        (spec(confidence=True), [USER], {"stream": True}, "(settings)"),
        (spec(), [USER], {"max_tokens": 99}, "(cut off)"),
        (spec(), [USER], {"max_tokens": 101}, "How far?"),
    ],
)
def test_what_the_collector_would_ask(of: OpenAISpec, messages: list, settings: dict, text: str):
    assert read(of, messages, **settings) == text
