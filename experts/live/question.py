"""Tells whether a live call is the one that the collector makes for a question, so that its answer need not be asked
for again."""

from __future__ import annotations

from experts.live.body import PASSED_ON, asks_confidence, most_tokens, plain_text, prepared, turns_of
from experts.live.types import ChatRequest
from experts.specs import ExpertSpec
from experts.types import CUT_OFF

SHAPES = ("tools", "functions", "response_format")
NO_EFFECT = {"logprobs", "top_logprobs", "user", "safety_identifier", "prompt_cache_key"}  # on what is answered
MOST_CHARS = 200_000  # of a question


class NoQuestion(Exception):
    """A request that is no question of a table, for the reason that is the first argument."""


def question_of(spec: ExpertSpec, request: ChatRequest, stream: bool, finish_reason: str | None) -> str:
    """The text of the query that an expert was asked, if the collector would ask it in the same words and with the same
    settings. Raises NoQuestion."""
    roles = [message.get("role") for message in request.messages]
    if roles.count("user") != 1 or {"assistant", "tool", "function"} & set(roles):
        raise NoQuestion("conversation")
    given = {name: value for name, value in request.settings.items() if value is not None and name in PASSED_ON}
    text = plain_text(request.messages[roles.index("user")].get("content"))
    if text is None or any(given.get(name) and given[name] != {"type": "text"} for name in SHAPES):
        raise NoQuestion("tools or images")
    if not text.strip() or len(text) > MOST_CHARS or not _is_storable(text):
        raise NoQuestion("text")
    confidence = asks_confidence(spec, request, stream)
    alone = prepared(spec, [{"role": "user", "content": text}], confidence)
    if turns_of(prepared(spec, request.messages, confidence)) != turns_of(alone):
        raise NoQuestion("system message")
    if confidence != spec.confidence or _sampling(spec, given) != _sampling(spec, {}):
        raise NoQuestion("settings")
    if finish_reason == CUT_OFF and most_tokens(spec, request) < spec.max_tokens:
        raise NoQuestion("cut off")
    return text


def _sampling(spec: ExpertSpec, given: dict[str, object]) -> dict[str, object]:
    """What decides about the answer beside the messages."""
    own = {name: value for name, value in given.items() if name not in NO_EFFECT and name not in SHAPES}
    if isinstance(own.get("stop"), str):
        own["stop"] = [own["stop"]]
    return spec.generation.model_dump(mode="json", exclude={"extra"}) | spec.generation.extra | own


def _is_storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
