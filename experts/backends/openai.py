"""Answers queries through a server with OpenAI's API: OpenAI, vLLM, Ollama and others."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from experts.specs import OpenAISpec
from experts.spending import SpendCap, not_asked
from experts.types import Answer, Query
from leeroo_env.errors import InputError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}
GATEWAY_ERRORS = {502, 504}  # the model behind the gateway may have answered, and the answer may be billed
ERROR_CHARS = 300

log = logging.getLogger(__name__)


@dataclass
class Attempts:
    """The attempts of one call that may be billed."""

    billable: int = 0  # sent and not refused, whether or not an answer arrived


_attempts: contextvars.ContextVar[Attempts] = contextvars.ContextVar("attempts")
_starting = threading.Lock()


class OpenAIExpert:
    """Sends at most `spec.concurrency` calls at a time, from any number of threads."""

    def __init__(self, spec: OpenAISpec, spend_cap: SpendCap) -> None:
        """
        Raises:
            InputError: an environment variable that the spec names is not set.
        """
        key = _variable("api_key_env", spec.api_key_env) if spec.api_key_env else "unused"
        url = _variable("base_url_env", spec.base_url_env) if spec.base_url_env else None
        self.name = spec.name
        self.spec = spec
        self._spend_cap = spend_cap
        self._secrets = tuple(s for s in (spec.api_key_env and key, _url_password(url)) if s)
        self._client = _client(key, url, spec.timeout_s, spec.max_retries)
        self._slots = asyncio.Semaphore(spec.concurrency)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Sends every query, with the client library's retries; a failed call gives an answer with `error`."""
        return asyncio.run_coroutine_threadsafe(self._answer(queries), _event_loop()).result()

    async def _answer(self, queries: Sequence[Query]) -> list[Answer]:
        return await asyncio.gather(*(self._ask(query) for query in queries))

    async def _ask(self, query: Query) -> Answer:
        """One call: reserves the worst cost of all attempts, then settles what was or may have been billed."""
        worst_usd = self.spec.worst_usd(query)
        async with self._slots:
            reserved_usd = worst_usd * self.spec.attempts
            if not await self._spend_cap.reserve_async(reserved_usd):
                return not_asked()
            attempts = Attempts()
            spent_usd = reserved_usd
            try:
                answer = await self._call(query, attempts)
                lost = attempts.billable - (answer.error is None)
                spent_usd = answer.cost_usd + lost * worst_usd
                return answer
            finally:
                self._spend_cap.settle(reserved_usd, spent_usd)

    async def _call(self, query: Query, attempts: Attempts) -> Answer:
        _attempts.set(attempts)
        started = time.perf_counter()
        try:
            text, prompt_tokens, completion_tokens = await self._complete(query)
        except Exception as error:  # of any kind: the other calls of the batch must get their answers
            return Answer("", 0, 0, 0.0, time.perf_counter() - started, error=self._describe(error))
        seconds = time.perf_counter() - started
        cost_usd = self.spec.price.cost_usd(prompt_tokens, completion_tokens, seconds)
        return Answer(text, prompt_tokens, completion_tokens, cost_usd, seconds)

    async def _complete(self, query: Query) -> tuple[str, int, int]:
        """The text, prompt tokens and completion tokens of one call."""
        prompt, settings = self.spec.render(query), _settings(self.spec)
        if self.spec.chat:
            system = [{"role": "system", "content": self.spec.system}] if self.spec.system else []
            messages: Any = [*system, {"role": "user", "content": prompt}]
            reply = await self._client.chat.completions.create(messages=messages, **settings)
            text = reply.choices[0].message.content
        else:
            prompt = f"{self.spec.system}\n\n{prompt}" if self.spec.system else prompt
            reply = await self._client.completions.create(prompt=prompt, **settings)
            text = reply.choices[0].text
        if reply.usage is None:
            _warn_no_usage(self.name)
            return text or "", self.spec.most_prompt_tokens(query), self.spec.max_tokens
        return text or "", reply.usage.prompt_tokens, reply.usage.completion_tokens

    def _describe(self, error: Exception) -> str:
        """One short line without secrets."""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text[:ERROR_CHARS]


def _settings(spec: OpenAISpec) -> dict[str, Any]:
    """The arguments of a call except its prompt."""
    sampling = spec.generation
    optional = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    settings: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
    if sampling.stop:
        settings["stop"] = list(sampling.stop)
    if sampling.extra:
        settings["extra_body"] = sampling.extra
    field = spec.max_tokens_field if spec.chat else "max_tokens"
    return {"model": spec.model, field: spec.max_tokens, **settings}


def _client(key: str, url: str | None, timeout_s: float, max_retries: int) -> AsyncOpenAI:
    import openai

    class CountingClient(openai.DefaultAsyncHttpxClient):
        """Counts the attempts that may be billed, including the library's own retries."""

        async def send(self, request: Any, **kwargs: Any) -> Any:
            attempts = _attempts.get()
            attempts.billable += 1
            try:
                response = await super().send(request, **kwargs)
            except Exception as error:
                attempts.billable -= type(error).__name__ in NEVER_SENT
                raise
            attempts.billable -= response.status_code >= 400 and response.status_code not in GATEWAY_ERRORS
            return response

    client = CountingClient(timeout=timeout_s)
    return openai.AsyncOpenAI(api_key=key, base_url=url, timeout=timeout_s, max_retries=max_retries, http_client=client)


def _event_loop() -> asyncio.AbstractEventLoop:
    """The event loop of all calls, on a thread of its own, so that `answer` works from any thread."""
    with _starting:  # the cache alone would let two threads start two loops
        return _started_loop()


@functools.cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="openai", daemon=True).start()
    return loop


@functools.cache
def _warn_no_usage(name: str) -> None:
    log.warning("%s: the server reports no token usage; an upper bound is recorded", name)


def _variable(field: str, name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise InputError(f"{field}: environment variable {name} is not set")
    return value


def _url_password(url: str | None) -> str | None:
    return urlsplit(url).password if url else None
