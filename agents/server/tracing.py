"""Spans of requests for OpenTelemetry, where its library is installed and set up; they hold neither prompts nor keys.

A request is one span. Its children are `decide`, `reserve`, `call` (one an attempt, from its start to its last token)
and `settle`. Without the library, or where nobody collects them, all of them are None and cost next to nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from experts.live import Completion, UpstreamError

try:
    from opentelemetry import propagate, trace
except ImportError:
    trace = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from agents.server.job import Job

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FLUSH_MS = 5_000

log = logging.getLogger(__name__)
Value = str | int | float | bool
_tracer = None if trace is None else trace.get_tracer("leeroo")  # finds a provider that is set up later


def set_up() -> None:
    """Sends this process's spans where OpenTelemetry's variables say, such as $OTEL_EXPORTER_OTLP_ENDPOINT.

    Nothing is done where none is set, or where the program that started this one has set up its own.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("%s is missing, so no spans are sent: pip install 'leeroo[otel]'", error.name)
        return
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        provider = TracerProvider(resource=Resource.create({} if named else {"service.name": "leeroo"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)


def flush() -> None:
    """Sends the spans that wait; uvicorn ends by a signal, after which nothing can be done."""
    send = None if trace is None else getattr(trace.get_tracer_provider(), "force_flush", None)
    if send is not None:
        send(FLUSH_MS)


def begin_request(headers: Mapping[str, str]) -> Span | None:
    """The span of a request, within that of another instrumentation of this process if there is one, else the child of
    the client's, if that sends one (W3C's `traceparent`)."""
    if _tracer is None:
        return None
    within = trace.get_current_span().get_span_context().is_valid
    sent = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
    context = propagate.extract(sent) if sent and not within else None
    kind = trace.SpanKind.INTERNAL if within else trace.SpanKind.SERVER
    span = _tracer.start_span("POST /v1/chat/completions", context=context, kind=kind)
    return span if span.is_recording() else None


def end_request(span: Span | None, job: Job | None, status: int) -> None:
    """Ends the span of a request; `job` None: nothing was known of it."""
    if span is None:
        return
    attributes: dict[str, Value] = {"http.request.method": "POST", "http.response.status_code": status}
    if job is not None:
        attributes |= {
            "leeroo.decision": job.id,
            "leeroo.expert": job.expert,
            "leeroo.why": job.why,
            "leeroo.attempts": job.reservations,
            "leeroo.cost_usd": job.cost_micro / 1e6,
            "leeroo.stream": bool(job.request.stream),
        }
    _end(span, attributes, f"HTTP {status}" if status >= 500 else None)


@contextlib.contextmanager
def child(parent: Span | None, name: str, **attributes: Value) -> Iterator[Span | None]:
    """A part of a request that ends with the block."""
    span = begin(parent, name, **attributes)
    try:
        yield span
    except BaseException as error:
        end(span, type(error).__name__)
        raise
    end(span)


def begin(parent: Span | None, name: str, **attributes: Value) -> Span | None:
    """A part of a request, to be ended by `end` or `end_call`."""
    if parent is None or _tracer is None:
        return None
    named = {f"leeroo.{key}": one for key, one in attributes.items()}
    return _tracer.start_span(name, context=trace.set_span_in_context(parent), attributes=named)


def end(span: Span | None, error: str | None = None) -> None:
    """Ends a part of a request; `error` says in a word what went wrong."""
    if span is not None:
        _end(span, {}, error)


def begin_call(parent: Span | None, expert: str, attempt: int) -> Span | None:
    """One attempt of one call to an expert, in the words of OpenTelemetry's conventions for generative AI."""
    span = begin(parent, "call", expert=expert, attempt=attempt)
    if span is not None:
        span.set_attributes({"gen_ai.operation.name": "chat", "gen_ai.request.model": expert})
    return span


def end_call(span: Span | None, outcome: Completion | UpstreamError | None) -> None:
    """Ends an attempt by what came of it; None: it was broken off."""
    if span is None:
        return
    if isinstance(outcome, Completion):
        usage = outcome.usage
        _end(
            span,
            {
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "leeroo.usage": usage.source,
                "leeroo.finish_reason": str(outcome.finish_reason),
                "leeroo.cost_usd": outcome.cost_usd,
            },
            None,
        )
    elif outcome is None:
        _end(span, {}, "broken off")
    else:  # its message may quote the prompt
        status = {} if outcome.status is None else {"http.response.status_code": outcome.status}
        _end(span, {"leeroo.cost_usd": outcome.cost_usd, **status}, outcome.kind)


def event(span: Span | None, name: str) -> None:
    """Notes when something happened, such as a stream's first token."""
    if span is not None:
        span.add_event(name)


def _end(span: Span, attributes: Mapping[str, Value], error: str | None) -> None:
    span.set_attributes(attributes)
    if error is not None:
        span.set_attribute("error.type", error)
        span.set_status(trace.StatusCode.ERROR)
    span.end()
