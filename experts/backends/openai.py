"""Answers queries through a server with OpenAI's API: OpenAI, vLLM, Ollama and others."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

from experts.backends.event_loop import event_loop
from experts.backends.http import FAILOVER_ATTEMPTS, Call, Pace, current_call, failover, make_client, reply_bytes
from experts.backends.reply import Reply, read_reply
from experts.backends.secrets import LEAST_CHARS, redact, secret_forms, secrets_of_url, shown_url
from experts.backends.server import key_and_address, limit_field, sampling_settings
from experts.confidence import logprob_without, split_confidence
from experts.specs import OpenAISpec
from experts.spending import CAP_REACHED, NOT_PAID, SpendCap, not_asked
from experts.types import EMPTY, OUT_OF_MONEY, Answer, Query
from experts.usage import Usage, count_tokens, normalise_usage
from leeroo_env.cli import printable

ERROR_CHARS = 300
RETRY_IF_EMPTY = (None, "stop")  # with other reasons the same prompt would end alike


class OpenAIExpert:
    """Sends at most `spec.concurrency` calls at a time, from any number of threads."""

    def __init__(self, spec: OpenAISpec, spend_cap: SpendCap) -> None:
        """
        Raises:
            InputError: an environment variable that the spec names is not set, or its tokenizer cannot be loaded.
        """
        key, url = key_and_address(spec)
        if spec.tokenizer is not None:
            count_tokens(spec.tokenizer, "")
        self.name = spec.name
        self.spec = spec
        self._spend_cap = spend_cap
        self._secrets = secret_forms([*([key] if key else []), *secrets_of_url(url)])
        self._client = make_client(key or "unused", url, spec.timeout_s, spec.max_retries)
        self._slots = asyncio.Semaphore(spec.concurrency)
        self._pace = Pace(spec.requests_per_minute) if spec.requests_per_minute else None
        self._overrun = 1.0  # the largest factor by which a call has cost more than its worst case

    def answer(self, queries: Sequence[Query], limits_usd: Sequence[float] | None = None) -> list[Answer]:
        """Sends every query, with the client library's retries; a failed call gives an answer with `error`.

        A call asks for no more tokens than its limit pays for, and is sent again only if what is left of that pays.
        """
        limits = [math.inf] * len(queries) if limits_usd is None else limits_usd
        return asyncio.run_coroutine_threadsafe(self._answer(queries, limits), event_loop()).result()

    async def _answer(self, queries: Sequence[Query], limits_usd: Sequence[float]) -> list[Answer]:
        return await asyncio.gather(*(self.ask(*pair) for pair in zip(queries, limits_usd, strict=True)))

    async def ask(self, query: Query, limit_usd: float) -> Answer:
        """One call, on one event loop for all. A reply without a text is asked for once more."""
        max_tokens = self.spec.affordable_tokens(query, limit_usd)
        if not max_tokens:
            return not_asked(NOT_PAID)
        async with self._slots:
            worst_usd = self.spec.worst_usd(query, max_tokens) * self._overrun
            most_bytes = reply_bytes(self.spec.max_tokens)
            call = Call(self._spend_cap, worst_usd, limit_usd, self.spec.timeout_s, most_bytes, self._pace)
            current_call.set(call)
            started = time.perf_counter()
            try:
                answer = await self._attempt(query, max_tokens, call, started)
                attempts = min(self.spec.attempts, FAILOVER_ATTEMPTS) if failover.get() else self.spec.attempts
                may_repeat = call.sent < attempts and call.can_repeat
                if answer.is_empty and answer.finish_reason in RETRY_IF_EMPTY and may_repeat:
                    again = await self._attempt(query, max_tokens, call, started)
                    answer = answer if again.error is not None and not again.is_empty else again
                return dataclasses.replace(answer, lost_usd=call.lost_usd)
            finally:
                call.settle(worst_usd)  # only where this was cancelled before its cost was known

    async def _attempt(self, query: Query, max_tokens: int, call: Call, started: float) -> Answer:
        """The answer of one request with its retries; `call` has what was lost on the way."""
        try:
            reply = await self._complete(query, max_tokens, self.spec.attempts - call.sent - 1)
        except Exception as error:  # of any kind: the other calls of the batch must get their answers
            if call.is_reserved:  # a reply came, but it cannot be read
                call.lose(may_be_billed=True)
            if call.sent == 0 and type(error).__name__ == CAP_REACHED:
                return not_asked()
            return Answer("", 0, 0, 0.0, time.perf_counter() - started, error=self._describe(error))
        if reply.finish_reason == "length" and max_tokens < self.spec.max_tokens:
            reply = dataclasses.replace(reply, finish_reason=OUT_OF_MONEY)
        return self._settled(reply, query, max_tokens, call, time.perf_counter() - started)

    def _settled(self, reply: Reply, query: Query, max_tokens: int, call: Call, seconds: float) -> Answer:
        """The answer in a reply, whose cost replaces its reservation."""
        spec = self.spec
        written = reply.reasoning + reply.text
        limits, prompt = spec.limits(query, max_tokens), (spec.system or "") + spec.render(query)
        usage = normalise_usage(reply.usage, limits, prompt, written)
        cost_usd = spec.price.usage_usd(usage, seconds)
        if call.worst_usd > 0:
            self._overrun = max(self._overrun, self._overrun * cost_usd / call.worst_usd)
        call.settle(cost_usd)
        text, confidence = split_confidence(reply.text) if spec.confidence else (reply.text, None)
        answer = Answer(
            text=redact(text, self._secrets, LEAST_CHARS),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cost_usd=cost_usd,
            latency_s=seconds,
            finish_reason=reply.finish_reason,
            reasoning=redact(reply.reasoning, self._secrets, LEAST_CHARS),
            cached_tokens=usage.cached,
            cache_write_tokens=usage.cache_write,
            reasoning_tokens=usage.reasoning,
            usage=usage.source,
            logprob=logprob_without(reply.tokens, reply.text, text),
            confidence=confidence,
        )
        if text.strip():
            return answer
        call.lost_usd += cost_usd
        return dataclasses.replace(answer, cost_usd=0.0, error=self._why_empty(reply, usage))

    def _why_empty(self, reply: Reply, usage: Usage) -> str:
        words = f"{EMPTY} (finish_reason {reply.finish_reason or 'not given'})"
        if reply.refusal:
            words += f": the model refused: {reply.refusal}"
        elif reply.finish_reason == "length":
            where = " on reasoning" if reply.reasoning or usage.reasoning else ""
            words += f": {usage.completion_tokens} tokens were spent{where}; raise max_tokens"
        return self._cleaned(words)

    async def _complete(self, query: Query, max_tokens: int, retries: int) -> Reply:
        """The reply to one request."""
        prompt, settings = self.spec.render(query), _settings(self.spec, max_tokens)
        client = self._client.with_options(max_retries=max(0, retries))
        if self.spec.chat:
            system = [{"role": "system", "content": self.spec.system}] if self.spec.system else []
            messages: Any = [*system, {"role": "user", "content": prompt}]
            response = await client.chat.completions.with_raw_response.create(messages=messages, **settings)
        else:
            prompt = f"{self.spec.system}\n\n{prompt}" if self.spec.system else prompt
            response = await client.completions.with_raw_response.create(prompt=prompt, **settings)
        return read_reply(response.http_response.content)

    def _describe(self, error: Exception) -> str:
        """One short line without secrets; where a server refused or was not found, its address."""
        words = f"{type(error).__name__}: {error}"
        request = getattr(error, "request", None)
        if request is not None and type(error).__name__ != "APITimeoutError":
            words = f"{words[: ERROR_CHARS - 100]} ({shown_url(str(request.url))})"
        if getattr(error, "status_code", 0) // 100 == 3:
            words = f"{type(error).__name__}: the server redirects, which is not followed; correct its address: {words}"
        return self._cleaned(words)

    def _cleaned(self, words: str) -> str:
        return redact(printable(words), self._secrets)[:ERROR_CHARS]


def _settings(spec: OpenAISpec, max_tokens: int) -> dict[str, Any]:
    """The arguments of a call except its prompt."""
    extra = {"extra_body": spec.generation.extra} if spec.generation.extra else {}
    return {"model": spec.model, limit_field(spec): max_tokens, **sampling_settings(spec), **extra}
