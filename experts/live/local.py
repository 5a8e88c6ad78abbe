"""Asks models of this process: all requests that wait together are one batch, which a thread answers."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pydantic

from experts.conversation import ENDS, has_several_turns
from experts.extra_settings import HUGGINGFACE, VLLM_SAMPLING
from experts.live.body import asks_confidence, most_tokens, prepared, turns_of
from experts.live.deadline import Deadline
from experts.live.reading import usage_body
from experts.live.stream import DRAIN_S, Stream
from experts.live.types import ChatRequest, Chunk, Completion, Kind, UpstreamError
from experts.pool.factory import with_spec
from experts.pool.problems import first_problem
from experts.specs import Generation, LocalSpec, VllmSpec
from experts.types import Answer, Conversation, Expert
from experts.usage import Usage
from leeroo_env.errors import InputError

TEXT_ONLY = ("tools", "functions", "response_format", "logprobs")


@dataclass
class Job:
    """A request that waits: its expert, of which there is one for each `key`, and where its answer goes."""

    key: tuple[Any, ...]
    expert: Expert
    query: Conversation
    batch_size: int
    answer: asyncio.Future[Answer]
    has_started: bool = False


class Batches:
    """Answers what waits, the oldest first and with it all with the same settings, one batch at a time."""

    def __init__(self) -> None:
        self._waiting: list[Job] = []
        self._task: asyncio.Task | None = None
        self._thread = ThreadPoolExecutor(1, "live-model")  # of its own, as slow models would fill a shared pool

    async def ask(self, job: Job) -> Answer:
        """The answer; a job that is cancelled before its turn is not asked."""
        self._waiting.append(job)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            return await job.answer
        finally:
            if not job.has_started:
                self._waiting.remove(job)

    async def run(self, expert: Expert, queries: list[Conversation]) -> list[Answer]:
        """The answers to one batch."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, expert.answer, queries)

    def close(self) -> None:
        """Starts no further batch."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while self._waiting:
            oldest = self._waiting[0]
            batch = [job for job in self._waiting if job.key == oldest.key][: oldest.batch_size]
            for job in batch:
                job.has_started = True
            self._waiting = [job for job in self._waiting if not job.has_started]
            try:
                await self._answer(batch)
            except Exception:  # of one of them, such as a conversation that a chat template refuses
                for job in batch:
                    try:
                        await self._answer([job])
                    except Exception as error:
                        if not job.answer.done():
                            job.answer.set_exception(error)
        self._task = None

    async def _answer(self, batch: list[Job]) -> None:
        jobs = [job for job in batch if not job.answer.done()]  # the others were cancelled
        if not jobs:
            return
        answers = await self.run(jobs[0].expert, [job.query for job in jobs])
        for job, answer in zip(jobs, answers, strict=True):
            if not job.answer.done():
                job.answer.set_result(answer)


class LiveLocal:
    """An expert of this process, which takes texts alone."""

    def __init__(self, expert: Expert, spec: LocalSpec, batches: Batches) -> None:
        """
        Args:
            batches: shared by the variants of an entry, whose weights answer one batch at a time.
        """
        self.name, self.spec = spec.name, spec
        self._expert = expert
        self._batches = batches
        self._tasks: set[asyncio.Task] = set()

    async def load(self) -> None:
        """See `LiveExpert`."""
        await self._batches.run(self._expert, [])

    def worst_usd(self, request: ChatRequest) -> float:
        """See `LiveExpert`."""
        spec = self.spec
        tokens = spec.most_chat_tokens(request.most_prompt_tokens)
        return math.inf if math.isinf(tokens) else spec.price.worst_usd(int(tokens), most_tokens(spec, request))

    async def complete(self, request: ChatRequest, timeout_s: float) -> Completion:
        """See `LiveExpert`. What is asked is answered to its end, also where nobody waits for it any more."""
        return await self._complete(request, timeout_s, None)

    def stream(self, request: ChatRequest, timeout_s: float, first_token_s: float) -> Stream:
        """See `LiveExpert`. The answer is one chunk, so that only `timeout_s` counts."""

        async def produce(stream: Stream) -> Completion:
            whole = await self._complete(request, timeout_s, stream)
            stream.put(Chunk(_as_chunk(whole.body)))
            return whole

        return Stream(produce, self._tasks)

    async def close(self) -> None:
        """See `LiveExpert`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._batches.close()

    async def _complete(self, request: ChatRequest, timeout_s: float, stream: Stream | None) -> Completion:
        started = time.perf_counter()
        job = self._job(request, stream is not None)
        most_s = min(timeout_s, self.spec.timeout_s)
        try:
            with Deadline(most_s, most_s) as deadline:
                if stream is not None:
                    stream.deadline = deadline
                    if stream.is_draining:
                        deadline.limit(DRAIN_S)
                answer = await self._batches.ask(job)
        except (TimeoutError, asyncio.CancelledError) as error:
            if stream is None and isinstance(error, asyncio.CancelledError):
                raise
            kind: Kind = "timeout" if isinstance(error, TimeoutError) else "interrupted"
            billed = job.has_started
            cost_usd = self.worst_usd(request) if billed else 0.0
            raise UpstreamError(kind, "no answer in time", may_be_billed=billed, cost_usd=cost_usd) from None
        except InputError as error:  # the model cannot be loaded
            raise UpstreamError("server", str(error)) from None
        except Exception as error:
            raise UpstreamError("server", f"{type(error).__name__}: {error}") from None
        return self._completion(answer, time.perf_counter() - started)

    def _job(self, request: ChatRequest, stream: bool) -> Job:
        """The request as a query to an expert with its settings. Raises UpstreamError for what no local model takes."""
        spec, given = self.spec, request.settings
        wanted = [name for name in TEXT_ONLY if given.get(name) and given[name] != {"type": "text"}]
        if request.images or wanted:
            what = "images" if request.images else wanted[0]
            raise UpstreamError("bad request", f"{self.name} takes text alone, not {what}")
        asks = asks_confidence(spec, request, stream)
        turns = turns_of(prepared(spec, request.messages, confidence=asks))
        generation = _generation(spec, given)
        if has_several_turns(turns) and not generation.stop:
            generation = generation.model_copy(update={"stop": ENDS})
        changes = {"max_tokens": most_tokens(spec, request), "generation": generation, "confidence": asks}
        key = (self.name, changes["max_tokens"], generation.model_dump_json(), asks)
        expert = with_spec(self._expert, spec.model_copy(update=changes))
        query = Conversation("live", turns[-1][1] if turns else "", turns=tuple(turns))
        return Job(key, expert, query, spec.batch_size, asyncio.get_running_loop().create_future())

    def _completion(self, answer: Answer, seconds: float) -> Completion:
        if answer.error is not None:
            refused = answer.latency_s == 0.0  # it was not asked: the prompt has no tokens, or too many
            kind: Kind = "empty" if answer.is_empty else "bad request" if refused else "server"
            billed = answer.billed_usd > 0
            raise UpstreamError(kind, answer.error, may_be_billed=billed, cost_usd=answer.billed_usd)
        usage = Usage(answer.prompt_tokens, output=answer.completion_tokens)
        message = {"role": "assistant", "content": answer.text}
        message |= {"reasoning_content": answer.reasoning} if answer.reasoning else {}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}
        body = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        body |= {"object": "chat.completion", "choices": [choice], "usage": usage_body(usage)}
        return Completion(
            body=body,
            text=answer.text,
            reasoning=answer.reasoning,
            finish_reason=answer.finish_reason,
            tool_calls=False,
            usage=usage,
            cost_usd=answer.cost_usd,
            latency_s=seconds,
            logprob=answer.logprob,
            confidence=answer.confidence,
        )


def _as_chunk(body: dict[str, Any]) -> dict[str, Any]:
    """A completion as the one chunk of a stream."""
    choice = body["choices"][0]
    choices = [{"index": 0, "delta": choice["message"], "finish_reason": choice["finish_reason"]}]
    chunk = body | {"object": "chat.completion.chunk", "choices": choices}
    del chunk["usage"]
    return chunk


def _generation(spec: LocalSpec, given: dict[str, Any]) -> Generation:
    """The spec's settings with those of a request."""
    allowed = VLLM_SAMPLING if isinstance(spec, VllmSpec) else HUGGINGFACE
    own = {name: given[name] for name in ("temperature", "top_p", "seed", "stop") if given.get(name) is not None}
    if isinstance(own.get("stop"), str):
        own["stop"] = [own["stop"]]
    extra = {name: given[name] for name in allowed & given.keys() if given[name] is not None}
    if not own and not extra:
        return spec.generation
    try:
        whole = spec.generation.model_dump() | own | {"extra": spec.generation.extra | extra}
        return Generation.model_validate(whole)
    except pydantic.ValidationError as error:
        raise UpstreamError("bad request", first_problem(error)) from None
