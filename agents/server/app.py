"""The HTTP server: OpenAI's API in front of a trained orchestrator."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import ctypes
import gc
import hmac
import json
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from agents.server import logs, metrics, tracing
from agents.server.config import ADMIN_KEY, ServerConfig
from agents.server.gateway import MICRO, Gateway
from agents.server.job import Hints, Job, OpenStream
from agents.server.journal import Decision, Journal
from agents.server.money import KeyInfo, Ledger, StoreUnavailable
from agents.server.openapi import ADMIN, CHAT, FEEDBACK, MODEL, MODELS, READY, RELOAD, ROUTE, tell_how_to_log_in
from agents.server.page import Page
from agents.server.reloader import Reloader
from agents.server.service import Service, same_encoder
from agents.server.shadow import Shadow
from agents.server.texts import Texts
from agents.server.wire import ApiError, ChatCompletionRequest, FeedbackRequest, parse, read_json
from experts.live import Completion, UpstreamError
from leeroo_env.cli import printable
from leeroo_env.errors import InputError
from leeroo_env.threads import set_threads

MOST_BODY_BYTES = 16 << 20
SLOWEST_CLIENT_S = 30.0  # for a request's body, and for each part of a streamed answer to be taken
MOST_EMBEDDING = 1e4  # of its numbers; encoders give up to 1, and much larger ones overflow
CLIENT_GONE = 499  # the status, which only the log sees
GRACE_S = 30.0
RECOVER_EVERY_S = 15.0
TRIM_EVERY_S = 30.0  # takes .02 s
MOST_DRIFT_S = 3.0  # of a scrape

log = logging.getLogger(__name__)


def create_app(config: ServerConfig) -> FastAPI:
    """The application; it loads policy and pool when it starts."""
    app = FastAPI(
        title="Leeroo",
        version="1",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        telemetry={"tracing": False},  # the server has spans of its own, whatever the version of FastAPI
    )
    app.state.config = config
    app.add_middleware(PinService)
    tell_how_to_log_in(app)
    app.add_exception_handler(ApiError, _error_response)  # type: ignore[arg-type]
    app.add_exception_handler(StoreUnavailable, _store_response)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _fault)
    app.add_exception_handler(404, _not_found)
    app.add_exception_handler(405, _not_found)
    app.add_api_route("/v1/chat/completions", chat_completions, methods=["POST"], **CHAT)
    app.add_api_route("/v1/route", route, methods=["POST"], **ROUTE)
    app.add_api_route("/v1/feedback", feedback, methods=["POST"], **FEEDBACK)
    app.add_api_route("/v1/models", models, methods=["GET"], **MODELS)
    app.add_api_route("/v1/models/{name:path}", one_model, methods=["GET"], **MODEL)
    app.add_api_route("/", page, methods=["GET"], response_class=HTMLResponse, **ADMIN)
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/ready", ready, methods=["GET"], **READY)
    app.add_api_route("/admin/reload", reload, methods=["POST"], **RELOAD)
    app.add_api_route("/metrics", prometheus, methods=["GET"], response_class=PlainTextResponse, **ADMIN)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    config: ServerConfig = app.state.config
    set_threads(config.threads)
    state = app.state
    state.ledger = Ledger.open(config.database)
    state.journal = Journal(state.ledger, Texts(config.keep_texts) if config.keep_texts else None)
    await state.journal.begin()
    state.reloader = Reloader(config, state.ledger, state.journal)
    await state.reloader.begin()
    state.shadow = Shadow(state.ledger)
    await state.shadow.begin()
    state.page = Page(config.database)
    state.draining = False
    gc.freeze()  # what is loaded stays: the collector need not look through it again and again
    repeated = [asyncio.create_task(work) for work in (_recover(state.ledger), _give_back_memory())]
    yield
    state.draining = True
    for task in repeated:
        task.cancel()
    await state.reloader.close(GRACE_S)
    await state.shadow.close()
    await state.journal.close()
    state.page.close()
    await asyncio.to_thread(tracing.flush)
    state.ledger.close()


async def _recover(ledger: Ledger) -> None:
    """Settles what killed processes left behind, again and again."""
    while True:
        try:
            await asyncio.to_thread(ledger.recover)
        except StoreUnavailable:
            pass
        except Exception as error:  # no reason to recover nothing more
            log.exception("expired reservations were not settled", exc_info=error)
        await asyncio.sleep(RECOVER_EVERY_S)


async def _give_back_memory() -> None:
    """Has the C library return free pages to the system; glibc keeps those between blocks in use, more with each hour,
    though what is in use does not grow."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(TRIM_EVERY_S)
        await asyncio.to_thread(trim, 0)


class PinService:
    """Has each request end with the service with which it began, whatever is loaded meanwhile."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        service: Service = scope["app"].state.reloader.service
        scope["service"] = service
        service.begin()
        try:
            await self.app(scope, receive, send)
        finally:
            service.end()


# ------------------------------------------------------------------------------------------------------------ routes


async def chat_completions(request: Request) -> Response:
    """Answers a conversation with the expert that pays, or with the one named by `model`."""
    started = time.monotonic()
    request.state.span = tracing.begin_request(request.headers)
    job: Job | None = None
    try:
        job = await _begin(request)
        job.span = request.state.span
        if job.request.stream:
            opened = await _gateway(request, job).open_stream(job)
            return EventStream(request, opened, started)
        answer = await _gateway(request, job).complete(job)
        body = json.dumps(answer, ensure_ascii=True, separators=(",", ":")).encode()
        _record(request, job, 200, started)
        return Response(body, media_type="application/json", headers=headers_of(job))
    except Exception as error:
        broken = 503 if isinstance(error, StoreUnavailable) else 500
        _record(request, job, error.status if isinstance(error, ApiError) else broken, started)
        raise


async def route(request: Request) -> JSONResponse:
    """The decision alone: which expert would be asked first, and why."""
    job = await _begin(request)
    gateway = _gateway(request, job)
    expert = await gateway.route(job)
    return JSONResponse(
        {
            "decision": job.id,
            "expert": expert.name,
            "why": job.why,
            "policy": job.policy,
            "max_calls": job.max_calls,
            "usd_price": gateway.planner.usd_price(job.money),
            "left_usd": None if job.left_micro is None else job.left_micro / MICRO,
            "budget_usd": job.money.usd,
            "queries_expected": job.money.queries,
            "experts": estimates_of(gateway, job),
        }
    )


async def feedback(request: Request) -> JSONResponse:
    """Takes what a user thinks of an answer: 0 is useless, 1 is right."""
    key = await _key(request)
    said: FeedbackRequest = parse(FeedbackRequest, await _json(request))
    if not await request.app.state.journal.rate(said.decision, key.key_id, said.score):
        raise ApiError(404, f"there is no decision {said.decision!r} of this key", "not_found", "decision")
    return JSONResponse({"decision": said.decision, "score": said.score})


async def models(request: Request) -> JSONResponse:
    """The experts, and `leeroo`, which chooses among them."""
    await _key(request)
    return JSONResponse({"object": "list", "data": [_model(name) for name in ("leeroo", *_gateway(request).by_name)]})


async def one_model(request: Request) -> JSONResponse:
    """One of them."""
    name = request.path_params["name"]
    await _key(request)
    if name != "leeroo" and name not in _gateway(request).by_name:
        raise ApiError(404, f"there is no model {name!r}", "model_not_found", "model")
    return JSONResponse(_model(name))


async def health() -> JSONResponse:
    """Whether the process is alive."""
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> JSONResponse:
    """Whether requests can be answered: the policy is loaded, the ledger writes, an expert is not failing."""
    gateway, ledger = _gateway(request), request.app.state.ledger
    if request.app.state.draining:
        return JSONResponse({"status": "shutting down"}, 503)
    try:
        await asyncio.to_thread(ledger.check)
    except StoreUnavailable as error:
        return JSONResponse({"status": f"the ledger is not reachable: {error}"}, 503)
    if all(gateway.is_open(name) for name in gateway.by_name):
        return JSONResponse({"status": "all experts failed lately"}, 503)
    version = {"version": _service(request).number}
    refused = request.app.state.reloader.problem is not None
    return JSONResponse({"status": "ok", **version, **({"reload": "the last one was refused"} if refused else {})})


async def reload(request: Request) -> JSONResponse:
    """Reads pool.yaml and the run again, in all workers; what is broken changes nothing."""
    _check_admin(request)
    try:
        done = await request.app.state.reloader.reload()
    except InputError as error:
        raise ApiError(409, str(error), "reload_refused") from None
    return JSONResponse({"status": "reloaded", **asdict(done)})


async def prometheus(request: Request) -> Response:
    """Numbers for Prometheus."""
    _check_admin(request)
    drifts = []
    with contextlib.suppress(StoreUnavailable, asyncio.TimeoutError):  # the other numbers are wanted most then
        drifts = await asyncio.wait_for(request.app.state.page.drifts(), MOST_DRIFT_S)
    return PlainTextResponse(metrics.exposition(_gateway(request), drifts), media_type=metrics.CONTENT_TYPE)


async def page(request: Request) -> HTMLResponse:
    """Money and decisions, for people."""
    _check_admin(request)
    gateway = _gateway(request)
    is_open = {name: gateway.is_open(name) for name in gateway.by_name}
    state, hours = request.app.state, request.query_params.get("hours", "24")
    shown: HTMLResponse = await state.page.show(is_open, hours, state.reloader.problem)
    return shown


# ------------------------------------------------------------------------------------------------- what routes share


async def _begin(request: Request) -> Job:
    key = await _key(request)
    wait_s = await request.app.state.ledger.admit(key.key_id)
    if wait_s is not None:
        message = f"more than {key.requests_per_minute} requests a minute"
        raise ApiError(429, message, "rate_limit_exceeded", headers={"retry-after": f"{max(1, round(wait_s))}"})
    fields = await _json(request)
    parsed: ChatCompletionRequest = parse(ChatCompletionRequest, fields)
    job_id = f"chatcmpl-{uuid.uuid4().hex}"
    gateway = _service(request).for_conversation(key.key_id, fields["messages"])
    job = await gateway.begin(job_id, key, fields, parsed, _hints(request, gateway))
    job.is_gone = request.is_disconnected
    return job


def _service(request: Request) -> Service:
    return request.scope["service"]  # type: ignore[no-any-return]


def _gateway(request: Request, job: Job | None = None) -> Gateway:
    """What answers the request, or knows the experts where that is all that matters."""
    return _service(request).of("" if job is None else job.policy)


async def _key(request: Request) -> KeyInfo:
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    key = await request.app.state.ledger.authenticate(secret.strip()) if kind.lower() == "bearer" else None
    if key is None:
        raise ApiError(401, "no valid API key: send `Authorization: Bearer lr-...`", "invalid_api_key")
    return key  # type: ignore[no-any-return]


def _check_admin(request: Request) -> None:
    """The admin key, as a bearer token or as the password of a browser's login."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        with contextlib.suppress(binascii.Error, ValueError):
            given = base64.b64decode(given).decode().partition(":")[2]
    expected = os.environ.get(ADMIN_KEY, "")
    if not expected or not hmac.compare_digest(given.strip().encode(), expected.encode()):
        asks = {"www-authenticate": "Basic realm=leeroo"}
        raise ApiError(401, "needs the admin key", "invalid_api_key", headers=asks)


async def _json(request: Request) -> dict[str, Any]:
    """The body, read within a limit and a time."""
    body = bytearray()

    async def read() -> None:
        async for part in request.stream():
            body.extend(part)
            if len(body) > MOST_BODY_BYTES:
                raise ApiError(413, f"the body is larger than {MOST_BODY_BYTES:,} bytes", "too_large")

    try:
        await asyncio.wait_for(read(), SLOWEST_CLIENT_S)
    except asyncio.TimeoutError:
        raise ApiError(408, "the body did not come in time", "timeout") from None
    except ClientDisconnect:
        raise ApiError(CLIENT_GONE, "the client went away", "client_gone") from None
    return read_json(bytes(body))


def _hints(request: Request, gateway: Gateway) -> Hints:
    """What the client tells in headers of ours; embeddings are those of the first policy. Raises ApiError."""
    left = request.headers.get("leeroo-queries-left")
    if left is not None and not (left.isdecimal() and len(left) <= 9 and int(left) >= 1):
        raise ApiError(400, "leeroo-queries-left: must be a whole number from 1", "invalid_value")
    given = request.headers.get("leeroo-embedding")
    embedding = None
    if given is not None:
        try:
            embedding = np.frombuffer(base64.b64decode(given, validate=True), dtype="<f4").copy()
        except (binascii.Error, ValueError):
            embedding = np.zeros(0, np.float32)
        first = _gateway(request)
        dim = first.planner.orchestrator.embedding_dim
        if embedding.shape != (dim,) or not (np.abs(embedding) <= MOST_EMBEDDING).all():
            what = f"must be {dim} float32 in base64, of no more than {MOST_EMBEDDING:g}"
            raise ApiError(400, f"leeroo-embedding: {what}", "invalid_value")
        embedding = embedding if same_encoder(first, gateway) else None
    domain = request.headers.get("leeroo-domain", "")[:200]
    return Hints(domain, None if left is None else int(left), embedding)


def headers_of(job: Job, cost_known: bool = True) -> dict[str, str]:
    """What an answer says of how it came about."""
    calls = 1 if not cost_known else max(1, len(job.completions))
    headers = {"leeroo-decision": job.id, "leeroo-expert": job.expert, "leeroo-calls": str(calls)}
    if job.policy:
        headers["leeroo-policy"] = job.policy
    if cost_known:
        headers["leeroo-cost-usd"] = f"{job.cost_micro / MICRO:.6f}"
    if job.left_micro is not None:
        headers["leeroo-left-usd"] = f"{job.left_micro / MICRO:.6f}"
    return {name: printable(value).encode("latin-1", "replace").decode("latin-1") for name, value in headers.items()}


def estimates_of(gateway: Gateway, job: Job) -> dict[str, Any]:
    """Estimated score and cost of the policy's experts for a request."""
    names = [expert.name for expert in gateway.experts]
    if job.plan.state is None:
        return {}
    scores: Sequence[float | None] = job.plan.score or [None] * len(names)
    rows = zip(names, scores, job.plan.cost_usd, strict=True)
    return {name: {"score": score, "cost_usd": cost_usd} for name, score, cost_usd in rows}


def _record(request: Request, job: Job | None, status: int, started: float) -> None:
    """Notes a finished request in journal, metrics and log."""
    seconds = time.monotonic() - started
    logs.request(job, status, seconds)
    metrics.request(job, status, seconds)
    tracing.end_request(request.state.span, job, status)
    if job is None:
        return
    gateway = _gateway(request, job)
    estimates = estimates_of(gateway, job)
    dearest = max((e["cost_usd"] for e in estimates.values()), default=job.cost_micro / MICRO)
    request.app.state.journal.add(
        Decision(
            id=job.id,
            key_id=job.key.key_id,
            at=time.time(),
            expert=job.expert if status == 200 else "",
            calls=job.reservations,
            micro_usd=job.cost_micro,
            dearest_micro_usd=round(max(dearest * MICRO, 0)),
            latency_s=seconds,
            why=job.why,
            estimates={name: [one["score"], one["cost_usd"]] for name, one in estimates.items()},
            status=status,
            policy=job.policy,
        )
    )
    if status == 200:
        request.app.state.shadow.decide(_service(request), job)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "leeroo"}


async def _error_response(request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _store_response(request: Request, error: StoreUnavailable) -> JSONResponse:
    refused = ApiError(503, "the ledger is not reachable, so nothing is answered", "ledger_unavailable")
    return JSONResponse(refused.body, 503, headers={"retry-after": "5"})


async def _fault(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(ApiError(500, "a fault of the server, which is in its log", "internal_error").body, 500)


async def _not_found(request: Request, error: Exception) -> JSONResponse:
    status = getattr(error, "status_code", 404)
    what = "there is no such address" if status == 404 else "this address does not take this method"
    return JSONResponse(ApiError(status, what, "not_found").body, status, headers=getattr(error, "headers", None))


class EventStream(Response):
    """Passes a stream on, event by event; whatever ends it, the call is settled."""

    def __init__(self, request: Request, opened: OpenStream, started: float):
        super().__init__(media_type="text/event-stream", headers=headers_of(opened.job, cost_known=False))
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        self.raw_headers.append((b"cache-control", b"no-cache"))
        self.request, self.opened, self.started = request, opened, started

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        passing = asyncio.ensure_future(self._pass_on(send))
        try:
            most_s = max(self.opened.job.left_s, 0.0) + SLOWEST_CLIENT_S
            await asyncio.wait([gone, passing], timeout=most_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not passing.done():
                passing.cancel()
            gateway = self.opened.gateway
            gateway.start(self._settle_unread())
        if passing.done() and not passing.cancelled():
            with contextlib.suppress(asyncio.TimeoutError):  # the client reads too slowly: the connection is closed
                passing.result()

    async def _pass_on(self, send: Send) -> None:
        """Headers, chunks, the end; an error after the first byte is an event."""
        opened, job = self.opened, self.opened.job
        await _in_time(send({"type": "http.response.start", "status": 200, "headers": self.raw_headers}))
        try:
            if opened.first is not None:
                await _in_time(send(_event({**opened.first.data, "id": job.id})))
                async for chunk in opened.stream:
                    await _in_time(send(_event({**chunk.data, "id": job.id})))
            opened.is_read = True
        except UpstreamError:
            pass  # told below
        outcome = await opened.gateway.settle_once(opened)
        if isinstance(outcome, UpstreamError):
            failed = ApiError(502, f"the expert broke off: {outcome.message}", "upstream_failed")
            await _in_time(send(_event(failed.body)))
            await _in_time(send({"type": "http.response.body", "body": b"", "more_body": False}))
            return
        if job.request.stream_options is not None and job.request.stream_options.include_usage:
            await _in_time(send(_event(_usage_chunk(job, outcome))))
        await _in_time(send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False}))

    async def _settle_unread(self) -> None:
        """Settles where the client went away; records the request in any case."""
        outcome = await self.opened.gateway.settle_once(self.opened)
        status = 200 if isinstance(outcome, Completion) else 502
        _record(self.request, self.opened.job, status, self.started)


def _event(data: dict[str, Any]) -> dict[str, Any]:
    body = b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
    return {"type": "http.response.body", "body": body, "more_body": True}


def _usage_chunk(job: Job, completion: Completion) -> dict[str, Any]:
    chunk = {name: completion.body.get(name) for name in ("created", "model", "usage")}
    left = None if job.left_micro is None else job.left_micro / MICRO
    told = {"cost_usd": job.cost_micro / MICRO, "left_usd": left}
    return {"id": job.id, "object": "chat.completion.chunk", "choices": [], **chunk, "leeroo": told}


async def _in_time(sending: Awaitable[None]) -> None:
    """Cuts off a client that does not take what is sent."""
    await asyncio.wait_for(sending, SLOWEST_CLIENT_S)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
