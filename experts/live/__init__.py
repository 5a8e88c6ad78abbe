"""One attempt of one chat request to one expert, whole or streamed; no retries, budgets or routing."""

from experts.live.body import not_passed_on
from experts.live.factory import make_live_experts
from experts.live.stream import Stream
from experts.live.types import ChatRequest, Chunk, Completion, LiveExpert, UpstreamError

__all__ = [
    "ChatRequest",
    "Chunk",
    "Completion",
    "LiveExpert",
    "Stream",
    "UpstreamError",
    "make_live_experts",
    "not_passed_on",
]
