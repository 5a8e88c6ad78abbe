"""Where OpenTelemetry is set up, each request is a span with its parts, and none holds a prompt or a key."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from agents.server import tracing
from experts.live import UpstreamError
from tests.agents.server.running import ROOT, Running

trace = pytest.importorskip("opentelemetry.trace")
sdk = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

PROMPT = "the word xyzzy is in no span"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def exporter() -> Any:
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: Any) -> Iterator[Any]:
    """The spans of a finished request, the request's first; at least so many, as settling may end after it."""

    def wait(least: int = 1) -> list[Any]:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time)
            request = [span for span in found if span.name.startswith("POST")]
            if request and len(found) >= least:
                return [*request, *(span for span in found if span not in request)]
            time.sleep(0.02)
        raise AssertionError("no request has ended")

    exporter.clear()
    yield wait
    exporter.clear()


def ask(server: Running, secret: str, **kwargs: Any) -> Any:
    fields: dict[str, Any] = {"model": "leeroo", "messages": [{"role": "user", "content": PROMPT}], **kwargs}
    return server.client(secret).chat.completions.create(**fields)


def test_a_request_has_its_parts_as_children(server: Running, spans: Any):
    secret = server.key("traced", 1.0)
    answer = ask(server, secret, extra_headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    request, *parts = spans(5)
    assert [part.name for part in parts] == ["decide", "reserve", "call", "settle"]
    assert all(part.parent.span_id == request.context.span_id for part in parts)
    assert f"{request.context.trace_id:032x}" == TRACE and f"{request.parent.span_id:016x}" == PARENT
    told, call, settle = request.attributes, parts[2].attributes, parts[3].attributes
    assert (told["leeroo.decision"], told["leeroo.expert"]) == (answer.id, answer.model)
    assert told["http.response.status_code"] == 200
    assert call["gen_ai.request.model"] == answer.model and call["leeroo.attempt"] == 1
    assert call["gen_ai.usage.output_tokens"] == answer.usage.completion_tokens
    assert told["leeroo.cost_usd"] == settle["leeroo.cost_usd"] == pytest.approx(call["leeroo.cost_usd"])
    told_all = "".join(span.to_json() for span in (request, *parts))
    assert "xyzzy" not in told_all and secret not in told_all and secret[3:] not in told_all


def test_a_stream_is_a_call_until_its_last_token(server: Running, spans: Any):
    assert list(ask(server, server.key("streams", 1.0), stream=True))
    request, *parts = spans()
    assert [part.name for part in parts] == ["decide", "reserve", "call", "settle"]
    call = parts[2]
    assert [event.name for event in call.events] == ["first token"] and call.end_time <= parts[3].start_time
    assert request.attributes["leeroo.stream"] and request.end_time >= parts[3].end_time


@pytest.mark.parametrize("secret, usd, status", [("lr-" + "x" * 43, None, 401), (None, 0.0, 429)])
def test_a_refused_request_is_a_span_too(
    server: Running, spans: Any, secret: str | None, usd: float | None, status: int
):
    with pytest.raises(openai.APIStatusError):
        ask(server, secret or server.key(f"refused {status}", usd))
    request, *parts = spans()
    assert request.attributes["http.response.status_code"] == status
    assert not any(part.name == "call" for part in parts)


def test_a_failed_call_says_how_and_no_more(exporter: Any, spans: Any):
    request = tracing.begin_request({})
    message = "500: cannot parse 'the word xyzzy'"
    error = UpstreamError("server", message, status=500, cost_usd=0.25, may_be_billed=True)
    tracing.end_call(tracing.begin_call(request, "small", 2), error)
    tracing.end_request(request, None, 502)
    top, call = spans()
    assert call.attributes["error.type"] == "server" and call.attributes["http.response.status_code"] == 500
    assert call.attributes["leeroo.cost_usd"] == 0.25 and call.attributes["leeroo.attempt"] == 2
    assert not call.status.is_ok and not top.status.is_ok and "xyzzy" not in call.to_json()


def test_within_another_span_it_is_a_part_of_that(exporter: Any, spans: Any):
    with trace.get_tracer("another").start_as_current_span("outer") as outer:
        tracing.end_request(tracing.begin_request({"traceparent": f"00-{TRACE}-{PARENT}-01"}), None, 200)
        (top,) = spans()
    assert top.parent.span_id == outer.get_span_context().span_id and top.kind is trace.SpanKind.INTERNAL


def test_without_the_library_nothing_is_traced():
    code = """
import sys
sys.modules["opentelemetry"] = None
from agents.server import tracing
tracing.set_up()
span = tracing.begin_request({"traceparent": "x"})
with tracing.child(span, "decide", candidates=1) as part:
    tracing.end_call(tracing.begin_call(span, "small", 1), None)
tracing.end_request(span, None, 200)
assert span is part is None
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_who_asks_for_spans_without_the_library_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: Any):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    tracing.set_up()
    assert "pip install 'leeroo[otel]'" in caplog.text
