"""Asks a server with OpenAI's API one request in one attempt: no retry, no redirect, a deadline, a largest size."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from experts.backends.http import ENCODINGS, UnreadableBody, check_encoding, read_body, reply_bytes
from experts.backends.reply import NoCompletion, no_completion, read_json, reply_in
from experts.backends.secrets import LEAST_CHARS, REDACTED, redact, secret_forms, secrets_of_url
from experts.backends.server import key_and_address
from experts.confidence import logprob_without, split_confidence
from experts.live.body import DISPENSABLE, asks_confidence, most_tokens, request_body, sent_text
from experts.live.connection import BrokenOff, NotConnected, Response, route_to
from experts.live.deadline import Deadline
from experts.live.events import Event, EventReader
from experts.live.reading import Assembly, chat_logprobs, read_value, usage_body
from experts.live.refusals import error_in, error_inside, refused, refused_setting
from experts.live.shape import reason_of
from experts.live.stream import DRAIN_S, Stream
from experts.live.types import ChatRequest, Chunk, Completion, Kind, UpstreamError
from experts.specs import OpenAISpec
from experts.spending import CHARS_PER_TOKEN
from experts.usage import Limits, Usage, count_tokens, normalise_usage
from leeroo_env.cli import printable

ERROR_CHARS = 300
ERROR_BYTES = 1 << 16
OPENAI_URL = "https://api.openai.com/v1"
AFTER_FINISH_S = 5.0  # how long the usage is waited for when the answer is complete
AFTER_DONE_S = 0.5  # and the end of the connection when that has come too


@dataclass
class Call:
    """One attempt: what it is sent, what it may cost, and what is known of it so far."""

    request: ChatRequest
    body: dict[str, Any]
    assembly: Assembly
    worst_usd: float
    most_prompt_tokens: int
    max_tokens: int
    asks_confidence: bool
    most_bytes: int
    started: float = field(default_factory=time.perf_counter)
    sent: float | None = None
    has_ended: bool = False

    @property
    def billed_seconds(self) -> float:
        return 0.0 if self.sent is None else time.perf_counter() - self.sent


class LiveOpenAI:
    """An expert on a server. Sends at most `spec.concurrency` calls at a time."""

    def __init__(self, spec: OpenAISpec) -> None:
        """
        Raises:
            InputError: an environment variable that the spec names is not set, or its tokenizer cannot be loaded.
        """
        key, url = key_and_address(spec)
        if spec.tokenizer is not None:
            count_tokens(spec.tokenizer, "")
        url = url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        self.name, self.spec = spec.name, spec
        self._secrets = secret_forms([*([key] if key else []), *secrets_of_url(url)])
        self._secret_bytes = [form.encode() for form in self._secrets if len(form) >= LEAST_CHARS]
        self._route = route_to(_endpoint(url, "chat/completions" if spec.chat else "completions"), _headers(key))
        self._slots = asyncio.Semaphore(spec.concurrency)
        self._unknown: set[str] = set()  # settings that the server refuses
        self._tasks: set[asyncio.Task] = set()

    def variant(self, spec: OpenAISpec) -> LiveOpenAI:
        """Another variant of the entry, which shares the connections and `concurrency`."""
        other = copy.copy(self)
        other.name, other.spec = spec.name, spec
        return other

    async def load(self) -> None:
        """See `LiveExpert`."""

    def worst_usd(self, request: ChatRequest) -> float:
        """See `LiveExpert`."""
        tokens = self._most_prompt_tokens(request)
        if math.isinf(tokens):
            return math.inf
        return self.spec.price.worst_usd(int(tokens), most_tokens(self.spec, request))

    async def complete(self, request: ChatRequest, timeout_s: float) -> Completion:
        """See `LiveExpert`."""
        call = self._call(request, stream=False)
        most_s = min(timeout_s, self.spec.timeout_s)
        try:
            with Deadline(most_s, most_s):
                async with self._slots, self._response(call) as response:
                    body = await read_body(response, call.most_bytes)
            self._add_whole(call, body)
            return self._completion(call)
        except Exception as error:
            raise self._failed(error, call) from None

    def stream(self, request: ChatRequest, timeout_s: float, first_token_s: float) -> Stream:
        """See `LiveExpert`. Where no more of the answer comes for `first_token_s`, later on too, the call fails."""
        most_s = min(timeout_s, self.spec.timeout_s)

        async def read(call: Call, stream: Stream) -> None:
            with Deadline(first_token_s, most_s) as deadline:
                stream.deadline = deadline
                if stream.is_draining:
                    deadline.limit(DRAIN_S)
                async with self._slots, self._response(call) as response:
                    await self._read_stream(call, response, stream, deadline, first_token_s)

        async def produce(stream: Stream) -> Completion:
            call = self._call(request, stream=True)
            try:
                try:
                    await read(call, stream)
                except Exception:
                    if not call.has_ended:  # else only the connection's end was bad
                        raise
                return self._completion(call)
            except (Exception, asyncio.CancelledError) as error:
                raise self._failed(error, call) from None

        return Stream(produce, self._tasks)

    async def close(self) -> None:
        """See `LiveExpert`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._route.close()

    def _most_prompt_tokens(self, request: ChatRequest) -> float:
        return self.spec.most_chat_tokens(request.most_prompt_tokens)

    def _call(self, request: ChatRequest, stream: bool) -> Call:
        spec, worst_usd = self.spec, self.worst_usd(request)
        if math.isinf(worst_usd):
            raise UpstreamError("bad request", "the request has parts whose cost has no bound, such as files")
        max_tokens = most_tokens(spec, request)
        return Call(
            request=request,
            body=request_body(spec, request, stream=stream, unknown=self._unknown),
            assembly=Assembly(self.name, bool(request.settings.get("logprobs"))),
            worst_usd=worst_usd,
            most_prompt_tokens=int(self._most_prompt_tokens(request)),
            max_tokens=max_tokens,
            asks_confidence=asks_confidence(spec, request, stream),
            most_bytes=reply_bytes(max_tokens * (2 + _top_logprobs(request))),
        )

    @asynccontextmanager
    async def _response(self, call: Call) -> AsyncIterator[Response]:
        """The response to a call, its body still to be read; once more without a setting that the server refuses."""
        for _ in range(len(DISPENSABLE)):
            response = await self._send(call)
            try:
                if response.status_code == 200:
                    check_encoding(response)
                    yield response
                    return
                body = await read_body(response, ERROR_BYTES)
            except UnreadableBody:
                if response.status_code == 200:
                    raise
                body = b""
            finally:
                await response.aclose()
            setting = refused_setting(response.status_code, read_json(body), call.body)
            if setting is None:
                raise refused(response.status_code, response.headers, body, ERROR_CHARS)
            self._unknown.add(setting)
            del call.body[setting]
        raise UpstreamError("bad request", "the server refuses one setting after the other")

    async def _send(self, call: Call) -> Response:
        content = json.dumps(call.body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        connection = await self._route.connect()
        call.sent = time.perf_counter()
        return await self._route.send(connection, content)

    async def _read_stream(
        self, call: Call, response: Response, stream: Stream, deadline: Deadline, gap_s: float
    ) -> None:
        """Reads a stream to its end, and passes on its parts from the first that has content."""
        if "event-stream" not in response.headers.get("content-type", ""):
            chunk = self._add_whole(call, await read_body(response, call.most_bytes))
            if call.assembly.has_content:
                stream.put(Chunk(chunk))
            return
        reader, n_bytes = EventReader(), 0
        held: list[Chunk] = []  # before the first content, as long as another expert could be asked
        async for part in response.aiter_bytes():
            n_bytes += len(part)
            if n_bytes > call.most_bytes:
                raise UnreadableBody(f"the reply is longer than {call.most_bytes:,} bytes, stopped reading")
            self._pass_on(call, reader.feed(part), held, stream, deadline, gap_s)
        self._pass_on(call, reader.end(), held, stream, deadline, gap_s)
        if not call.has_ended:
            raise UpstreamError("interrupted", "the stream ends before the answer does", may_be_billed=True)

    def _pass_on(
        self, call: Call, events: list[Event], held: list[Chunk], stream: Stream, deadline: Deadline, gap_s: float
    ) -> None:
        """Adds events to the reply, and passes on what is to be seen of them."""
        assembly, written = call.assembly, call.assembly.written
        for event in events:
            if event.data.strip() == b"[DONE]":
                call.has_ended = True
                deadline.move(AFTER_DONE_S)
                return
            data = assembly.add(self._read_event(event))
            if data is None:
                continue
            if assembly.has_content:
                for chunk in held:
                    stream.put(chunk)
                held.clear()
                stream.put(Chunk(data))
            else:
                held.append(Chunk(data))
        if assembly.finish_reason is not None:
            call.has_ended = True
            deadline.move(AFTER_FINISH_S)
        elif assembly.written > written:
            deadline.move(gap_s)

    def _read_event(self, event: Event) -> dict[str, Any]:
        """The value of an event; raises where it is an error or no JSON object."""
        data = self._without_secrets(event.data)
        value = read_value(data)
        error = error_in(value)
        if error is None and event.name == b"error":
            error = 502, data.decode("utf-8", "replace")
        if error is not None:
            raise error_inside(*error)
        if value is None:
            raise no_completion(data)
        return value

    def _add_whole(self, call: Call, body: bytes) -> dict[str, Any]:
        """Adds a reply that comes in one piece, and gives it as one chunk."""
        value = read_value(body := self._without_secrets(body))
        error = error_in(value)
        if error is not None:
            raise error_inside(*error)
        chunk = None if value is None else call.assembly.add(value)
        if chunk is None:
            raise no_completion(body)
        call.has_ended = True
        return chunk

    def _without_secrets(self, body: bytes) -> bytes:
        for form in self._secret_bytes:
            if form in body:
                body = body.replace(form, REDACTED.encode())
        return body

    def _completion(self, call: Call) -> Completion:
        """The reply with its cost; raises UpstreamError if it is empty."""
        seconds = call.billed_seconds
        body = call.assembly.body()
        reply = reply_in(body)
        usage = self._usage(call)
        cost_usd = self.spec.price.usage_usd(usage, seconds)
        choice = body["choices"][0]
        has_calls = "tool_calls" in choice["message"] or "function_call" in choice["message"]
        was_passed_on = bool(call.body.get("stream")) and call.assembly.has_content
        if not (reply.text or reply.refusal or has_calls or was_passed_on):
            why = f"an empty reply (finish_reason {reply.finish_reason or 'not given'})"
            raise UpstreamError("empty", why, status=200, may_be_billed=cost_usd > 0, cost_usd=cost_usd)
        text, confidence = reply.text, None
        if call.asks_confidence:
            text, confidence = split_confidence(text)
            choice["message"]["content"] = split_confidence(choice["message"]["content"] or "")[0]
        choice["logprobs"] = chat_logprobs(choice["logprobs"]) if call.assembly.keeps_logprobs else None
        choice["finish_reason"] = reason_of(finish_reason := choice["finish_reason"])
        return Completion(
            body=body | {"usage": usage_body(usage)},
            text=text,
            reasoning=reply.reasoning,
            finish_reason=finish_reason,
            tool_calls=has_calls,
            usage=usage,
            cost_usd=cost_usd,
            latency_s=time.perf_counter() - call.started,
            logprob=logprob_without(reply.tokens, reply.text, text),
            confidence=confidence,
        )

    def _usage(self, call: Call) -> Usage:
        tokenizer = None if call.request.images else self.spec.tokenizer  # which cannot count images
        limits = Limits(self.name, call.most_prompt_tokens, call.max_tokens, tokenizer)
        return normalise_usage(
            call.assembly.usage, limits, sent_text(call.body) if tokenizer else "", call.assembly.text()
        )

    def _delivered_usd(self, call: Call) -> float:
        """An estimate of what the prompt and the part of the answer cost that came."""
        prompt, tokenizer = sent_text(call.body), self.spec.tokenizer
        n_in = count_tokens(tokenizer, prompt) if tokenizer else len(prompt) // CHARS_PER_TOKEN + 1
        n_out = count_tokens(tokenizer, call.assembly.text()) if tokenizer else call.assembly.written
        cost_usd = self.spec.price.cost_usd(n_in, n_out, call.billed_seconds)
        return min(cost_usd, call.worst_usd)

    def _failed(self, error: BaseException, call: Call) -> UpstreamError:
        """The error that a caller gets: its kind, and what the call is billed."""
        if isinstance(error, UpstreamError):
            failed = error
        else:
            kind, may_be_billed = self._kind(error)
            words = "no whole reply in time" if kind == "timeout" else str(error) or type(error).__name__
            failed = UpstreamError(kind, words, may_be_billed=may_be_billed and call.sent is not None)
        failed.message = redact(printable(failed.message), self._secrets)[:ERROR_CHARS]
        failed.args = (failed.message,)
        if call.assembly.has_content and failed.kind != "empty":
            failed.may_be_billed = True
            failed.delivered_usd = self._delivered_usd(call) if call.body.get("stream") else 0.0
        if failed.may_be_billed and failed.kind != "empty":
            failed.cost_usd = call.worst_usd
        return failed

    def _kind(self, error: BaseException) -> tuple[Kind, bool]:
        """The kind of an error, and whether a call that fails with it may be billed, if it was sent."""
        if isinstance(error, TimeoutError):
            return "timeout", True
        if isinstance(error, NotConnected):
            return "connect", False
        if isinstance(error, (BrokenOff, asyncio.CancelledError)):
            return "interrupted", True
        if isinstance(error, (NoCompletion, UnreadableBody)):
            return "unreadable", True
        return "bad request" if isinstance(error, ValueError) else "unreadable", True


def _top_logprobs(request: ChatRequest) -> int:
    asked = request.settings.get("top_logprobs")
    return min(asked, 20) if isinstance(asked, int) and asked > 0 else 0


def _headers(key: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept-Encoding": ", ".join(ENCODINGS), "User-Agent": "leeroo"}
    for name, variable in (("OpenAI-Organization", "OPENAI_ORG_ID"), ("OpenAI-Project", "OPENAI_PROJECT_ID")):
        if os.environ.get(variable):
            headers[name] = os.environ[variable]
    return headers | ({"Authorization": f"Bearer {key}"} if key else {})


def _endpoint(url: str, path: str) -> str:
    """The address of an endpoint of a server; what stands behind a question mark stays there."""
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{path}").geturl()
