"""Sends requests for openai's library: reserves each attempt's cost, and stops replies that are too long or slow."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experts.backends.reply import error_in
from experts.spending import SpendCap

if TYPE_CHECKING:
    from openai import AsyncOpenAI

NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "LocalProtocolError"}
MAY_BE_BILLED = {408, *range(500, 600)} - {503, 529}  # with other errors the model was not asked
LEAST_REPLY_BYTES = 1 << 20
REPLY_BYTES_PER_TOKEN = 1 << 10  # with what servers add to each token, such as log-probabilities
CONNECT_S = 10.0
ENCODINGS = ("gzip", "deflate")


class Pace:
    """Starts requests at even distances, so that no minute has more than `per_minute` of them. On one event loop."""

    def __init__(self, per_minute: float) -> None:
        self._gap_s, self._next_s = 60.0 / per_minute, 0.0

    async def wait(self) -> None:
        """Returns when the next request may start."""
        now_s = asyncio.get_running_loop().time()
        start_s = max(now_s, self._next_s)
        self._next_s = start_s + self._gap_s
        await asyncio.sleep(start_s - now_s)


@dataclass
class Call:
    """The attempts of one call: what each may cost, and what the failed ones may have been billed.

    Attributes:
        spend_cap: each attempt is reserved here before it is sent.
        worst_usd: the most that one attempt can cost.
        limit_usd: the most that all of them may cost.
        timeout_s: of one attempt, from its first byte to its last.
        most_bytes: of a reply.
        pace: each attempt waits for its turn.
        sent: attempts so far.
        lost_usd: the cost of attempts that failed and may be billed nevertheless.
        is_reserved: whether there is an attempt that is not settled.
    """

    spend_cap: SpendCap
    worst_usd: float
    limit_usd: float
    timeout_s: float
    most_bytes: int
    pace: Pace | None = None
    sent: int = 0
    lost_usd: float = 0.0
    is_reserved: bool = False

    @property
    def can_repeat(self) -> bool:
        """Whether the limit pays for one more attempt."""
        return self.lost_usd + self.worst_usd <= self.limit_usd

    async def reserve(self) -> bool:
        """Reserves the next attempt, when its turn has come; False if the spend cap refuses."""
        if self.pace is not None:
            await self.pace.wait()
        self.is_reserved = await self.spend_cap.reserve_async(self.worst_usd)
        self.sent += self.is_reserved
        return self.is_reserved

    def settle(self, usd: float) -> None:
        """Replaces the reservation of the attempt by its cost."""
        if self.is_reserved:
            self.is_reserved = False
            self.spend_cap.settle(self.worst_usd, usd)

    def lose(self, may_be_billed: bool) -> None:
        """Settles an attempt that failed."""
        usd = self.worst_usd if may_be_billed else 0.0
        self.lost_usd += usd
        self.settle(usd)


current_call: contextvars.ContextVar[Call] = contextvars.ContextVar("current_call")
# True where the caller asks another expert if a call fails. Then an attempt that reaches no server or takes too long is
# the last one, and so is the second of any other, unless the server is busy (429), which is not billed.
failover: contextvars.ContextVar[bool] = contextvars.ContextVar("failover", default=False)
FAILOVER_ATTEMPTS = 2


def reply_bytes(max_tokens: int) -> int:
    """The most bytes that a reply of so many tokens takes."""
    return LEAST_REPLY_BYTES + REPLY_BYTES_PER_TOKEN * max_tokens


class UnreadableBody(Exception):
    """The body is longer than it may be, or packed in a way that was not asked for."""


def http_library() -> Any:
    """The HTTP library that openai's is built on: httpx or httpx2, as installed."""
    import openai

    return sys.modules[openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0]]


@functools.cache
def ssl_context() -> Any:
    """The certificates that are trusted, read once for all clients, as that takes a tenth of a second."""
    return http_library().create_ssl_context()


def check_encoding(response: Any) -> None:
    """Raises UnreadableBody for an encoding that was not asked for."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", *ENCODINGS):
        raise UnreadableBody(f"the reply comes as {encoding[:20]!r}, which was not asked for")


async def read_body(response: Any, most_bytes: int) -> bytes:
    """The whole body of an open response, unpacked; raises UnreadableBody as soon as it has more than `most_bytes`."""
    check_encoding(response)
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > most_bytes:
            raise UnreadableBody(f"the reply is longer than {most_bytes:,} bytes, stopped reading")
    return bytes(body)


def make_client(key: str, url: str | None, timeout_s: float, max_retries: int) -> AsyncOpenAI:
    """The library's client, which retries when `Retry-After` says; `current_call` must be set for each call."""
    import openai

    base = openai.DefaultAsyncHttpxClient
    httpx = http_library()
    timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_S, 0.9 * timeout_s))

    class PaidClient(base):  # type: ignore[misc, valid-type]
        async def send(self, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
            call = current_call.get()
            if not await call.reserve():
                raise SpendCapReached
            try:
                response = await asyncio.wait_for(self._receive(request, call.most_bytes, kwargs), call.timeout_s)
            except asyncio.TimeoutError:
                call.lose(may_be_billed=True)
                if failover.get() or not call.can_repeat:
                    raise openai.APITimeoutError(request=request) from None  # not retried, as all of openai's own
                raise httpx.ReadTimeout(f"no whole reply within {call.timeout_s:g} s", request=request) from None
            except BaseException as error:
                unreached = type(error).__name__ in NEVER_SENT
                call.lose(may_be_billed=not unreached)
                last = unreached or call.sent >= FAILOVER_ATTEMPTS or isinstance(error, httpx.TimeoutException)
                last = (last and failover.get()) or not call.can_repeat
                if last and isinstance(error, httpx.TransportError):
                    raise openai.APIConnectionError(request=request) from error
                raise
            if response.status_code >= 300:
                call.lose(response.status_code in MAY_BE_BILLED)
                last = failover.get() and response.status_code != 429 and call.sent >= FAILOVER_ATTEMPTS
                if last or not call.can_repeat:
                    response.headers["x-should-retry"] = "false"
            return response

        async def _receive(self, request: Any, most_bytes: int, kwargs: dict[str, Any]) -> Any:
            """The whole response; an error inside a 200 gets the status that it should have had."""
            response = await super().send(request, stream=True, **kwargs)
            try:
                content = await read_body(response, most_bytes)
            except UnreadableBody as error:
                raise UnreadableReply(str(error)) from None
            finally:
                await response.aclose()
            status = response.status_code
            if status == 200 and (inside := error_in(content)) is not None:
                status, content = inside[0], json.dumps({"error": {"message": inside[1]}}).encode()
            names = ("content-type", "retry-after", "retry-after-ms", "x-should-retry")
            headers = {name: response.headers[name] for name in names if name in response.headers}
            return httpx.Response(status, headers=headers, content=content, request=request)

    class SpendCapReached(openai.OpenAIError):
        """The library neither retries nor wraps its own errors."""

    class UnreadableReply(openai.OpenAIError):
        pass

    return openai.AsyncOpenAI(
        api_key=key,
        base_url=url,
        timeout=timeout,
        max_retries=max_retries,
        http_client=PaidClient(timeout=timeout, follow_redirects=False),  # a redirect would send the prompt elsewhere
        default_headers={"Accept-Encoding": ", ".join(ENCODINGS)},
    )
