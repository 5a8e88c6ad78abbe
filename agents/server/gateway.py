"""Answers one request: decides, reserves the worst case, asks an expert, settles what it cost, and fails over.

K experts of the policy; others of the pool are asked by name only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections.abc import Collection, Coroutine, Sequence
from typing import Any

from agents.server import tracing
from agents.server.job import Hints, Job, OpenStream, Reserved
from agents.server.journal import Journal
from agents.server.money import Charge, KeyInfo, Ledger, Refused, StoreUnavailable, micro_of
from agents.server.routing import Plan, Planner
from agents.server.wire import ApiError, ChatCompletionRequest, passed_on
from agents.serving.asking import as_answer, as_failure
from agents.serving.breaker import CircuitBreaker
from agents.serving.conversation import (
    conversation_key,
    earlier_text,
    in_tool_round,
    needs_of,
    next_key,
    prompt_tokens,
    query_text,
)
from agents.serving.decider import delivered_call
from agents.serving.outlook import cache_discount_usd, reason
from experts.live import ChatRequest, Completion, LiveExpert, UpstreamError
from experts.specs import OpenAISpec
from experts.types import Answer, Query
from leeroo_env.variants import entry_of

log = logging.getLogger(__name__)
MOST_ATTEMPTS = 5  # of a request, over all experts
BUCKETS = ("input", "cached", "cache_write", "output", "reasoning")
LEAST_LEFT_S = 1.0  # of the deadline, below which no further expert is asked
READ_ON_S = 120.0  # after its deadline, in which a stream is read by a slow client or drained
MICRO = 1_000_000
WAIT_S = 0.05
LONGEST_WAIT_S = 15.0  # for money that calls in flight hold
MOST_USD = 1e9  # in place of no bound


class Gateway:
    """Everything between a checked request and its answer.

    Attributes:
        planner: decides.
        experts: the K experts of the policy, in its order.
        by_name: these and the others of the pool.
        ledger: holds the money.
        breaker: knows which experts failed lately.
        policy: the name of its policy.
    """

    def __init__(
        self,
        planner: Planner,
        experts: Sequence[LiveExpert],
        others: Sequence[LiveExpert],
        ledger: Ledger,
        journal: Journal,
        deadline_s: float,
        policy: str = "",
    ):
        """Args: what decides, the K experts of its policy in order, further ones that are asked by name only, the store
        of the money, what remembers conversations, how long a request may take, and what the policy is called."""
        self.planner, self.experts, self.ledger, self.deadline_s = planner, list(experts), ledger, deadline_s
        self.journal, self.policy = journal, policy
        self.by_name = {expert.name: expert for expert in [*experts, *others]}
        self.numbers = {expert.name: k for k, expert in enumerate(experts)}
        self.breaker = CircuitBreaker()
        self._entries = {name: entry_of(name, self.by_name) for name in self.by_name}
        self._overrun = dict.fromkeys(self.by_name, 1.0)  # by which a call has cost more than its worst case
        self._tasks: set[asyncio.Task[Any]] = set()

    def learn_from(self, other: Gateway) -> None:
        """Takes over what another gateway has learnt of experts that both have: who failed, and who costs more than its
        worst case."""
        same = {name for name, expert in self.by_name.items() if other.by_name.get(name) is expert}
        entries = {self._entries[name] for name in same}

        def keeps(kind: str, name: str) -> bool:
            return name in entries if kind == "model" else name.partition(" ")[2] in same  # after the key's number

        self.breaker = other.breaker.copy(keeps)
        self._overrun |= {name: other._overrun[name] for name in same}

    def learn_with(self, other: Gateway) -> None:
        """Shares with a gateway to the same experts what both learn of them."""
        self.breaker, self._overrun = other.breaker, other._overrun

    async def begin(
        self, job_id: str, key: KeyInfo, fields: dict[str, Any], request: ChatCompletionRequest, hints: Hints
    ) -> Job:
        """Everything about a request that is known before an expert is asked. Raises ApiError."""
        messages, settings = fields["messages"], passed_on(fields)
        budget = await self.ledger.budget(key.key_id)
        money = self.planner.money(_usd(budget.unspent_micro), hints.queries_left or budget.queries_expected)
        most_tokens = request.most_tokens or max(expert.spec.max_tokens for expert in self.by_name.values())
        chat = ChatRequest(messages, settings, most_tokens)
        asked_for = self._asked_for(request.model)
        needs = needs_of(messages, settings)
        text = query_text(messages)
        return Job(
            id=job_id,
            key=key,
            request=request,
            chat=chat,
            plan=Plan(Query(job_id, text, hints.domain), earlier_text(messages), hints.embedding),
            money=money,
            left_micro=budget.unspent_micro,
            able=[] if asked_for else self.able(needs, prompt_tokens(messages, settings)),
            max_calls=1 if needs or request.stream or asked_for else self.planner.max_calls,
            deadline=time.monotonic() + self.deadline_s,
            current=None if asked_for else await self._current(key, messages),
            asked_for=asked_for,
            policy="" if asked_for else self.policy,
        )

    async def complete(self, job: Job) -> dict[str, Any]:
        """The answer to a plain request, an OpenAI chat completion. Raises ApiError."""
        while (expert := await self._next(job)) is not None:
            attempt = self._plain_attempt(job, expert, self._chat(job, expert))
            await self._shielded(attempt)
        completion = self._delivered(job)
        if completion is None:
            raise self._failed(job)
        job.expert = completion.body["model"]
        self._remember(job, completion)
        return {**completion.body, "id": job.id}

    def _delivered(self, job: Job) -> Completion | None:
        """The best supported answer; where the money ended first, what was written until then."""
        if job.max_calls == 1:
            return job.last
        assert job.plan.state is not None
        place = delivered_call(job.plan.state, self.planner.decider.models)
        return job.last if place is None else job.completions[place]

    async def open_stream(self, job: Job) -> OpenStream:
        """A streaming request up to its first chunk, after which no other expert is asked. Raises ApiError."""
        while (expert := await self._next(job)) is not None:
            chat = self._chat(job, expert)
            opening = self.start(self._open(job, expert, chat))
            try:
                opened = await asyncio.shield(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(self._abandon)
                raise
            if opened is not None:
                job.expert = expert.name
                return opened
        raise self._failed(job)

    async def route(self, job: Job) -> LiveExpert:
        """The expert that would be asked first; none is. Raises ApiError."""
        expert = await self._next(job, asks=False)
        if expert is None:
            raise self._failed(job)
        job.expert = expert.name
        return expert

    def is_open(self, name: str) -> bool:
        """Whether an expert is left alone now, since it or the server of its model failed lately."""
        return self.breaker.is_open(name, self._entries[name])

    async def close(self, grace_s: float, in_use: Collection[LiveExpert] = ()) -> None:
        """Waits for calls in flight, so that they are settled, and closes connections, except to experts that are still
        in use."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for expert in self.by_name.values():
            if expert not in in_use:
                await expert.close()
        self.planner.close()

    # ------------------------------------------------------------------------------------------------- who is asked

    async def _next(self, job: Job, asks: bool = True) -> LiveExpert | None:
        """The expert to ask next; None: deliver what there is, or nothing can be asked any more. It `asks`: an expert
        that failed lately may be tried by one request."""
        begun = bool(job.failures or job.completions)
        if len(job.failures) >= MOST_ATTEMPTS or job.left_s < (LEAST_LEFT_S if begun else 0.0):
            return None
        if begun and job.is_gone is not None and await job.is_gone():
            return None
        if job.completions and job.max_calls == 1:
            return None
        if job.asked_for is not None:
            return None if job.failures or not self._affordable(job, job.asked_for) else job.asked_for
        state = job.plan.state
        succeeded = 0 if state is None else len(state.counted)
        if succeeded >= job.max_calls:
            return None
        candidates = self._candidates(job)
        if not candidates:
            return None
        own_usd = job.cost_micro / MICRO
        money = dataclasses.replace(job.money, usd=max(0.0, job.money.usd - own_usd))
        with tracing.child(job.span, "decide", candidates=len(candidates)):
            ranking = await self.planner.rank(job.plan, money, candidates)
        deliver = [len(self.experts)] if succeeded else []
        choice = max([*candidates, *deliver], key=ranking.__getitem__)
        if choice == len(self.experts):
            return None
        choice = self._stay(job, choice, candidates)
        expert = self.experts[choice]
        if not asks or job.last_resort or self.breaker.admit(*self._breaker_names(job.key, expert)):
            return expert
        return await self._next(job)

    def _breaker_names(self, key: KeyInfo, expert: LiveExpert) -> tuple[str, str]:
        """By what the breaker knows an expert: refused requests count by key, as they may be the fault of its client,
        who must not keep the expert from others; all other failures by the server."""
        return f"{key.key_id} {expert.name}", self._entries[expert.name]

    def _candidates(self, job: Job) -> list[int]:
        """The able experts that were not asked yet, can be paid, and did not fail lately; where all did and there is
        no answer yet, one of them is tried all the same."""
        asked = [] if job.plan.state is None else job.plan.state.asked
        affordable = [k for k in job.able if k not in asked and self._affordable(job, self.experts[k])]
        candidates = [k for k in affordable if not self.breaker.is_open(*self._breaker_names(job.key, self.experts[k]))]
        if job.current in candidates and in_tool_round(job.chat.messages):
            return [job.current]
        if candidates or job.completions or job.last_resort:
            return candidates
        job.last_resort = True
        return affordable

    def _stay(self, job: Job, choice: int, candidates: list[int]) -> int:
        """The current expert of the conversation where a switch does not pay, else the policy's choice."""
        first = job.plan.state is None or not job.plan.state.asked
        if job.current is None or job.current not in candidates or not first:
            job.why = job.why or reason(self.planner.decider.names, choice, job.plan.score, job.plan.cost_usd)
            return choice
        tokens = prompt_tokens(job.chat.messages, job.chat.settings)
        lost_usd = cache_discount_usd(self.experts[job.current].spec.price, tokens)
        if self.planner.stays(job.plan, job.money, choice, job.current, lost_usd):
            job.why = "goes on with the expert of the conversation"
            return job.current
        job.why = "the policy's choice, worth leaving the expert of the conversation for"
        return choice

    def able(self, needs: list[str], tokens: int) -> list[int]:
        """The experts that can do what is needed. Raises ApiError, which names what none can."""
        able = list(range(len(self.experts)))
        for need in needs:
            able = [k for k in able if need in self.experts[k].spec.abilities]
            if not able:
                raise ApiError(400, f"no expert of this pool can do what the request needs: {need}", "unsupported")
        fitting = [k for k in able if (self.experts[k].spec.context or math.inf) > tokens]
        if not fitting:
            message = f"the conversation has about {tokens} tokens, more than the context of every able expert"
            raise ApiError(400, message, "context_length_exceeded", "messages")
        return fitting

    def _asked_for(self, model: str) -> LiveExpert | None:
        """The expert of this name; None: the policy chooses."""
        if model in self.by_name:
            return self.by_name[model]
        if model == "leeroo":
            return None
        raise ApiError(404, f"there is no model {model!r}; `leeroo` chooses", "model_not_found", "model")

    async def _current(self, key: KeyInfo, messages: list[dict[str, Any]]) -> int | None:
        """The expert that gave the last answer of a conversation, if that is known."""
        name = conversation_key(key.key_id, messages)
        expert = None if name is None else await self.journal.expert_of(name)
        return None if expert is None else self.numbers.get(expert)

    def _remember(self, job: Job, completion: Completion) -> None:
        answer = completion.body["choices"][0]["message"]
        name = next_key(job.key.key_id, job.chat.messages, answer)
        self.journal.remember(name, completion.body["model"])

    def _keep(self, job: Job, expert: LiveExpert, chat: ChatRequest, completion: Completion) -> None:
        """Keeps an answer for later training, where the server is told to and the client does not object."""
        texts = self.journal.texts
        if texts is not None and job.request.store is not False:
            texts.add(job.plan.query, expert, chat, completion, bool(job.request.stream))

    # ------------------------------------------------------------------------------------------------------- money

    def _chat(self, job: Job, expert: LiveExpert) -> ChatRequest:
        """The request with no more output tokens than what is left pays for."""
        most = min(job.chat.max_tokens, expert.spec.max_tokens)
        return dataclasses.replace(job.chat, max_tokens=self._affordable_tokens(job, expert, most))

    def _affordable(self, job: Job, expert: LiveExpert) -> bool:
        return self._affordable_tokens(job, expert, min(job.chat.max_tokens, expert.spec.max_tokens)) > 0

    def _affordable_tokens(self, job: Job, expert: LiveExpert, most: int) -> int:
        """The most output tokens, up to `most`, that what is left pays for."""
        if job.left_micro is None or self._worst_micro(job, expert, most) <= job.left_micro:
            return most
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._worst_micro(job, expert, middle) <= job.left_micro
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _worst_micro(self, job: Job, expert: LiveExpert, max_tokens: int) -> int:
        chat = dataclasses.replace(job.chat, max_tokens=max_tokens)
        return micro_of(min(expert.worst_usd(chat) * self._overrun[expert.name], MOST_USD))

    async def _reserve(self, job: Job, expert: LiveExpert, chat: ChatRequest) -> Reserved | None:
        """Reserves an attempt; waits for calls in flight whose reservations hold what it needs. None where what is left
        does not pay for it any more, or for too long. Raises ApiError."""
        worst_micro = self._worst_micro(job, expert, chat.max_tokens)
        gives_up = time.monotonic() + min(LONGEST_WAIT_S, max(0.0, job.left_s - LEAST_LEFT_S))
        while True:
            try:
                ttl_s, first = max(job.left_s, 0.0) + self.deadline_s + READ_ON_S, not job.reservations
                name = await self.ledger.reserve(job.key.key_id, job.id, expert.name, worst_micro, ttl_s, first)
                job.reservations += 1
                return Reserved(name, worst_micro)
            except Refused as refused:
                if refused.revoked:
                    self._not_asked(job, expert)
                    raise ApiError(401, "this key is revoked", "invalid_api_key") from None
                unspent_micro = (await self.ledger.budget(job.key.key_id)).unspent_micro
                is_spent = unspent_micro is not None and unspent_micro < worst_micro
                if is_spent or time.monotonic() >= gives_up:
                    self._not_asked(job, expert)
                    left_micro = unspent_micro if is_spent and unspent_micro is not None else refused.left_micro
                    job.left_micro = min(left_micro, worst_micro - 1)
                    return None
            except StoreUnavailable:
                self._not_asked(job, expert)
                raise
            await asyncio.sleep(WAIT_S)

    def _not_asked(self, job: Job, expert: LiveExpert) -> None:
        """Another request may try an expert that failed lately."""
        self.breaker.release(*self._breaker_names(job.key, expert))

    def _settle(
        self, job: Job, expert: LiveExpert, reserved: Reserved, answer: Completion, outcome: str
    ) -> asyncio.Task[None]:
        """Charges the key what an answer costs; returns the task that writes it to the ledger."""
        cost_micro = micro_of(min(answer.cost_usd, MOST_USD))
        charge = Charge(
            micro_usd=cost_micro,
            **{name: getattr(answer.usage, name) for name in BUCKETS},
            usage=answer.usage.source,
            outcome=outcome,
            latency_s=answer.latency_s,
            price_version=price_version(expert),
        )
        self._spent(job, cost_micro)
        if cost_micro > reserved.worst_micro > 0:
            self._overrun[expert.name] *= cost_micro / reserved.worst_micro
        return self.start(self._charge(job, reserved, charge))

    async def _lose(self, job: Job, expert: LiveExpert, reserved: Reserved, error: UpstreamError) -> None:
        """Settles an attempt that failed: the key pays for what the client has read of it, the operator for the rest
        that was or may have been billed."""
        cost_micro, delivered_micro = micro_of(min(error.cost_usd, MOST_USD)), micro_of(error.delivered_usd)
        delivered_micro = min(delivered_micro, cost_micro)
        charge = Charge(
            micro_usd=delivered_micro,
            lost_micro_usd=cost_micro - delivered_micro,
            usage="assumed",
            outcome="failed",
            price_version=price_version(expert),
        )
        self._spent(job, delivered_micro)
        await self._charge(job, reserved, charge)

    async def _charge(self, job: Job, reserved: Reserved, charge: Charge) -> None:
        usd, lost_usd = charge.micro_usd / MICRO, charge.lost_micro_usd / MICRO
        with tracing.child(job.span, "settle", cost_usd=usd, lost_usd=lost_usd, outcome=charge.outcome):
            try:
                await self.ledger.settle(reserved.id, charge)
            except Exception as error:  # the answer is paid for all the same
                log.exception("a call's cost was not settled: its reservation expires", exc_info=error)

    def _spent(self, job: Job, micro: int) -> None:
        job.cost_micro += micro
        if job.left_micro is not None:
            job.left_micro = max(0, job.left_micro - micro)

    # ------------------------------------------------------------------------------------------------------- calls

    async def _plain_attempt(self, job: Job, expert: LiveExpert, chat: ChatRequest) -> None:
        """One attempt, settled whatever happens; the job has what came of it."""
        with tracing.child(job.span, "reserve", expert=expert.name):  # with the wait for calls in flight
            reserved = await self._reserve(job, expert, chat)
        if reserved is None:
            return
        started = time.monotonic()
        span = tracing.begin_call(job.span, expert.name, job.reservations)
        try:
            completion = await expert.complete(chat, self._timeout_s(job, expert))
        except Exception as unknown:
            error = _as_upstream(unknown, reserved)
            tracing.end_call(span, error)
            await self._lose(job, expert, reserved, error)
            self._add_failure(job, expert, error, time.monotonic() - started)
            return
        tracing.end_call(span, completion)
        self._settle(job, expert, reserved, completion, "answered")  # which the client need not wait for
        self._keep(job, expert, chat, completion)
        await self._add(job, expert, chat, completion)

    async def _open(self, job: Job, expert: LiveExpert, chat: ChatRequest) -> OpenStream | None:
        """A stream that has brought its first chunk; None where it failed before, settled."""
        with tracing.child(job.span, "reserve", expert=expert.name):  # with the wait for calls in flight
            reserved = await self._reserve(job, expert, chat)
        if reserved is None:
            return None
        started = time.monotonic()
        span = tracing.begin_call(job.span, expert.name, job.reservations)
        try:
            stream = expert.stream(chat, self._timeout_s(job, expert), _first_token_s(expert))
            first = await anext(stream, None)
        except Exception as unknown:
            error = _as_upstream(unknown, reserved)
            tracing.end_call(span, error)
            await self._lose(job, expert, reserved, error)
            self._add_failure(job, expert, error, time.monotonic() - started)
            return None
        tracing.event(span, "first token")
        return OpenStream(self, job, expert, chat, reserved, stream, first, span)

    def _abandon(self, opening: asyncio.Task[OpenStream | None]) -> None:
        """Settles a stream that was opened for nobody."""
        opened = None if opening.cancelled() or opening.exception() is not None else opening.result()
        if opened is not None:
            self.start(self.settle_once(opened))

    async def settle_once(self, opened: OpenStream) -> Completion | UpstreamError:
        """Settles a stream by what the upstream billed, read to its end or drained; the same for all who call it."""
        if opened.settling is None:
            opened.settling = self.start(self._end_stream(opened))
        return await asyncio.shield(opened.settling)

    async def _end_stream(self, opened: OpenStream) -> Completion | UpstreamError:
        job, expert = opened.job, opened.expert
        try:
            completion = await opened.stream.finish()
        except Exception as unknown:
            error = _as_upstream(unknown, opened.reserved)
            tracing.end_call(opened.span, error)
            await self._lose(job, expert, opened.reserved, error)
            self._note(job, expert, as_failure(error, 0.0))
            return error
        tracing.end_call(opened.span, completion)
        outcome = "answered" if opened.is_read else "cancelled"
        await self._settle(job, expert, opened.reserved, completion, outcome)
        self._keep(job, expert, opened.chat, completion)
        self._note(job, expert, as_answer(completion, cut_off=False))
        self._remember(job, completion)
        return completion

    async def _add(self, job: Job, expert: LiveExpert, chat: ChatRequest, completion: Completion) -> None:
        limited = chat.max_tokens < min(job.chat.max_tokens, expert.spec.max_tokens)
        answer = as_answer(completion, cut_off=limited and completion.finish_reason == "length")
        self._note(job, expert, answer)
        if job.max_calls == 1:  # nothing to compare it with
            job.completions[0] = completion
            return
        assert job.plan.state is not None
        job.completions[len(job.plan.state.results)] = completion
        await asyncio.to_thread(self.planner.decider.add, job.plan.state, self.numbers[expert.name], answer)

    def _note(self, job: Job, expert: LiveExpert, answer: Answer) -> None:
        name, entry = self._breaker_names(job.key, expert)
        self.breaker.record(name, [answer], entry)

    def _add_failure(self, job: Job, expert: LiveExpert, error: UpstreamError, seconds: float) -> None:
        job.failures.append(error)
        self._note(job, expert, as_failure(error, 0.0))  # 0: one long answer is no reason for a long pause
        if job.plan.state is not None:
            self.planner.decider.add(job.plan.state, self.numbers[expert.name], as_failure(error, seconds))

    def _timeout_s(self, job: Job, expert: LiveExpert) -> float:
        return max(LEAST_LEFT_S, min(expert.spec.timeout_s, job.left_s))

    async def _shielded(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Awaits work that goes on when the request is cancelled, since it has money in flight."""
        return await asyncio.shield(self.start(work))

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that `close` waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _failed(self, job: Job) -> ApiError:
        """Why there is no answer, in the client's terms."""
        if not job.failures:
            unpaid = [job.asked_for] if job.asked_for else [self.experts[k] for k in job.able]
            if job.left_micro is not None and not any(self._affordable(job, expert) for expert in unpaid):
                left = job.left_micro / MICRO
                message = f"what is left (${left:.6f}) does not pay for this request with any expert"
                return ApiError(429, message, "insufficient_quota", headers={"x-should-retry": "false"})
            return ApiError(503, "no expert can be asked now", "no_expert", headers={"retry-after": "5"})
        if all(error.kind == "bad request" for error in job.failures):
            return ApiError(400, f"the experts refuse the request: {job.failures[0].message}", "bad_request")
        if all(error.kind == "rate limit" for error in job.failures):
            wait_s = min((error.retry_after_s or 5.0 for error in job.failures), default=5.0)
            again = {"retry-after": f"{max(wait_s, 1):.0f}"}
            return ApiError(429, "the experts are busy", "rate_limit_exceeded", headers=again)
        slow = all(error.kind == "timeout" for error in job.failures)
        reasons = "; ".join(dict.fromkeys(error.message for error in job.failures))[:500]
        return ApiError(504 if slow else 502, f"no expert answered: {reasons}", "upstream_failed")


def price_version(expert: LiveExpert) -> str:
    """The prices of a charge, so that the ledger can be checked when pool.yaml has changed."""
    price = expert.spec.price
    return f"{price.usd_per_mtok_in:g}/{price.usd_per_mtok_out:g}/{price.usd_per_second:g}"


def _as_upstream(error: Exception, reserved: Reserved) -> UpstreamError:
    """What a call raised; a fault of ours may have been billed at its worst case."""
    if isinstance(error, UpstreamError):
        return error
    log.exception("a call failed for a reason of its own", exc_info=error)
    worst_usd = reserved.worst_micro / MICRO
    return UpstreamError("unreadable", f"{type(error).__name__}", may_be_billed=True, cost_usd=worst_usd)


def _first_token_s(expert: LiveExpert) -> float:
    """How long a stream may be silent; of a model in this process, as long as it may take."""
    return expert.spec.first_token_s if isinstance(expert.spec, OpenAISpec) else expert.spec.timeout_s


def _usd(micro: int | None) -> float | None:
    return None if micro is None else micro / MICRO
