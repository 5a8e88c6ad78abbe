"""Reads conversations in the messages of OpenAI's API as queries, and has live experts answer them within limits."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agents.serving.asking import as_answer, as_failure
from agents.serving.conversation import needs_of, prompt_tokens, query_text
from agents.serving.reply import Reply
from experts.backends.event_loop import event_loop
from experts.live import ChatRequest, Chunk, LiveExpert, UpstreamError
from experts.specs import ExpertSpec, OpenAISpec
from experts.spending import NOT_PAID, not_asked
from experts.types import CUT_OFF, Answer, Chat, Query
from leeroo_env.errors import InputError

ROLES = ("system", "developer", "user", "assistant", "tool")
LONGEST_WAIT_S = 30.0  # for a server that is busy
INTERRUPTED = "interrupted"  # the finish reason of a streamed answer that broke off


def is_conversation(value: Any) -> bool:
    """Whether this is a list of messages."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(message, Mapping) and "role" in message for message in value)


def as_chat(value: Query | Sequence[Mapping[str, Any]], name: str) -> Chat:
    """A conversation, or a query as one of a single turn. Raises InputError, which begins with `name`."""
    if isinstance(value, Chat):
        return value
    if isinstance(value, Query):
        messages = [{"role": "user", "content": value.text}]
        known: dict[str, Any] = {field.name: getattr(value, field.name) for field in dataclasses.fields(Query)}
    else:
        messages = [_checked(message, f"{name}[{i}]") for i, message in enumerate(value)]
        known = {"query_id": name, "text": query_text(messages)}
    request = ChatRequest(messages, {}, 1)
    if not known["text"].strip() and not request.images:
        raise InputError(f"{name}: is empty")
    return Chat(
        **known,
        messages=tuple(messages),
        most_tokens=request.most_prompt_tokens,
        tokens=prompt_tokens(messages, {}),
        needs=tuple(needs_of(messages, {})),
    )


def _checked(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A message of its own. Raises InputError."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InputError(f"{where}: role {role!r}: must be one of {', '.join(ROLES)}")
    is_text = isinstance(content, str) or (content is None and role == "assistant")
    if not is_text and not (isinstance(content, list | tuple) and all(map(_is_part, content))):
        raise InputError(f"{where}: content: must be a text, or a list of parts of type text or image_url")
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(message), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: cannot be written as JSON: {error}") from None
    return copied


def _is_part(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    if part.get("type") == "text":
        return isinstance(part.get("text"), str)
    url = part.get("image_url")
    return part.get("type") == "image_url" and isinstance(url, Mapping) and isinstance(url.get("url"), str)


class PoolExpert:
    """A live expert as the orchestrator asks it: about `Chat`s in a batch, from any thread, within limits in dollars.

    An attempt that a server was too busy for is repeated. One that failed otherwise is not: another expert is asked.
    """

    def __init__(self, live: LiveExpert) -> None:
        self.name, self.live = live.name, live
        self.spec: ExpertSpec = live.spec
        self.on_text: Callable[[str], None] | None = None
        self._slots = asyncio.Semaphore(live.spec.concurrency) if isinstance(live.spec, OpenAISpec) else None

    def streaming(self, on_text: Callable[[str], None]) -> PoolExpert:
        """The same expert, which passes on its answer in pieces while it comes."""
        other = copy.copy(self)
        other.on_text = on_text
        return other

    def answer(self, queries: Sequence[Query], limits_usd: Sequence[float] | None = None) -> list[Answer]:
        """See `experts.types.LimitedExpert`."""
        limits = [math.inf] * len(queries) if limits_usd is None else limits_usd
        return asyncio.run_coroutine_threadsafe(self._answer(queries, limits), event_loop()).result()

    async def _answer(self, queries: Sequence[Query], limits_usd: Sequence[float]) -> list[Answer]:
        return await asyncio.gather(*(self._ask(*pair) for pair in zip(queries, limits_usd, strict=True)))

    async def _ask(self, query: Query, limit_usd: float) -> Answer:
        messages = [*as_chat(query, "query").messages]
        max_tokens = self._affordable_tokens(ChatRequest(messages, {}, self.spec.max_tokens), limit_usd)
        if not max_tokens:
            return not_asked(NOT_PAID)
        request = ChatRequest(messages, {}, max_tokens)
        if self._slots is None:
            return await self._attempts(request)
        async with self._slots:
            return await self._attempts(request)

    async def _attempts(self, request: ChatRequest) -> Answer:
        """The answer to a request, which waits for a server that is busy."""
        started, wait_s, sent = time.perf_counter(), 0.5, 0
        while True:
            sent += 1
            try:
                return await self._attempt(request)
            except UpstreamError as error:
                seconds = time.perf_counter() - started
                wait_s = 2 * wait_s if error.retry_after_s is None else error.retry_after_s
                in_time = wait_s <= LONGEST_WAIT_S and seconds + wait_s < self.spec.timeout_s
                if error.kind != "rate limit" or error.may_be_billed or sent == self.spec.attempts or not in_time:
                    return as_failure(error, seconds)
            await asyncio.sleep(wait_s)

    async def _attempt(self, request: ChatRequest) -> Answer:
        """The answer of one attempt, also where a stream breaks off. Raises UpstreamError where nothing came."""
        spec = self.spec
        if self.on_text is None:
            completion = await self.live.complete(request, spec.timeout_s)
        else:
            silence_s = spec.first_token_s if isinstance(spec, OpenAISpec) else spec.timeout_s
            stream, text = self.live.stream(request, spec.timeout_s, silence_s), ""
            try:
                async for chunk in stream:
                    piece = _text_of(chunk)
                    text += piece
                    self.on_text(piece)
                completion = await stream.finish()
            except UpstreamError as error:
                if not text:
                    raise
                lost_usd = max(0.0, error.cost_usd - error.delivered_usd)
                return Answer(text, 0, 0, error.delivered_usd, 0.0, None, INTERRUPTED, lost_usd=lost_usd)
        cut_off = request.max_tokens < spec.max_tokens and completion.finish_reason == CUT_OFF
        return as_answer(completion, cut_off)

    def _affordable_tokens(self, request: ChatRequest, usd: float) -> int:
        """The most output tokens that a call may write to cost at most `usd`; 0: not even one."""
        if self.live.worst_usd(request) <= usd:
            return request.max_tokens
        low, high = 0, request.max_tokens
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.live.worst_usd(dataclasses.replace(request, max_tokens=middle)) <= usd
            low, high = (middle, high) if fits else (low, middle)
        return low


def _text_of(chunk: Chunk) -> str:
    """What a part of a streamed answer adds to its text."""
    choices = chunk.data.get("choices") or [{}]
    return str((choices[0].get("delta") or {}).get("content") or "")


class ReplyStream:
    """The pieces of an answer while they come, and what `Orchestrator.answer` would say of it when it has ended.

    Attributes:
        reply: None as long as the answer has not ended.
    """

    def __init__(self, work: Callable[[Callable[[str], None]], Reply]):
        """Args: answers, and passes on pieces; it runs in a thread of its own, to its end also if nobody reads."""
        self.reply: Reply | None = None
        self._pieces: queue.SimpleQueue[str | Reply | BaseException] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=[work], name="stream", daemon=True).start()

    def __iter__(self) -> Iterator[str]:
        while self.reply is None:
            piece = self._pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            if isinstance(piece, Reply):
                self.reply = piece
            elif piece:
                yield piece

    def _run(self, work: Callable[[Callable[[str], None]], Reply]) -> None:
        try:
            self._pieces.put(work(self._pieces.put))
        except BaseException as error:
            self._pieces.put(error)
