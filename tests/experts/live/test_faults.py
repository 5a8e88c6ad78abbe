"""What each fault of a server is called, and what it costs, with real servers on loopback."""

import gzip
import math
import socket
import time
from email.utils import formatdate

import pytest

from experts.live.openai import LiveOpenAI
from tests.experts.live.upstream import (
    COST_USD,
    DONE,
    USAGE,
    WORDS,
    answered,
    begin,
    chunk,
    completion,
    end,
    event,
    failed,
    head,
    part,
    request,
    reset,
    send,
    spec,
    streamed,
)

BOTH = pytest.mark.parametrize("stream", [False, True])


def worst_usd(server, **fields) -> float:
    return LiveOpenAI(spec(server.url, **fields)).worst_usd(request())


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@BOTH
def test_a_server_that_refuses_the_connection_bills_nothing(stream):
    error, chunks = failed(f"http://127.0.0.1:{closed_port()}/v1", stream=stream)
    assert (error.kind, error.may_be_billed, error.cost_usd, chunks) == ("connect", False, 0.0, [])
    assert error.message == "the connection is refused"  # the address is nobody else's business


@BOTH
def test_a_server_that_hangs_before_its_head_may_bill(server, stream):
    server.behave = server.hang
    started = time.monotonic()
    error, _ = failed(server.url, stream=stream, timeout_s=0.3)
    assert error.kind == "timeout" and error.may_be_billed and error.cost_usd == pytest.approx(worst_usd(server))
    assert time.monotonic() - started < 2 and error.delivered_usd == 0


@pytest.mark.parametrize("first", [b"", event(WORDS[0]), b": still here\n\n" * 3])
def test_a_server_that_hangs_before_the_first_token(server, first):
    def behave(sock, body):
        begin(sock)
        if first:
            part(sock, first)
        server.hang()

    server.behave = behave
    started = time.monotonic()
    error, chunks = failed(server.url, stream=True, first_token_s=0.3)
    assert (error.kind, error.may_be_billed, chunks) == ("timeout", True, [])
    assert time.monotonic() - started < 2 and error.delivered_usd == 0


def test_a_server_that_hangs_mid_stream(server):
    def behave(sock, body):
        begin(sock)
        part(sock, event(WORDS[0]) + event(WORDS[1]))
        server.hang()

    server.behave = behave
    error, chunks = failed(server.url, stream=True, first_token_s=0.3)
    assert (error.kind, error.may_be_billed, len(chunks)) == ("timeout", True, 2)
    assert 0 < error.delivered_usd < error.cost_usd == pytest.approx(worst_usd(server))


def test_the_total_time_counts_though_tokens_keep_coming(server):
    def behave(sock, body):
        begin(sock)
        while not server.closing.wait(0.05):
            part(sock, event(chunk("more ")))

    server.behave = behave
    error, chunks = failed(server.url, stream=True, timeout_s=0.5)
    assert error.kind == "timeout" and len(chunks) > 3


def test_a_connection_that_is_reset_mid_stream(server):
    def behave(sock, body):
        begin(sock)
        part(sock, event(WORDS[1]))
        time.sleep(0.1)
        reset(sock)

    server.behave = behave
    error, chunks = failed(server.url, stream=True)
    assert (error.kind, error.may_be_billed, len(chunks)) == ("interrupted", True, 1) and error.delivered_usd > 0


@BOTH
def test_a_connection_that_is_reset_before_the_head(server, stream):
    server.behave = lambda sock, body: reset(sock)
    error, _ = failed(server.url, stream=stream)
    assert (error.kind, error.may_be_billed) == ("interrupted", True)


def test_a_reply_that_is_shorter_than_its_length(server):
    server.behave = lambda sock, body: (sock.sendall(head(200, {"content-length": "999"}) + b"{"), reset(sock))
    error, _ = failed(server.url)
    assert (error.kind, error.may_be_billed) == ("interrupted", True)


@pytest.mark.parametrize("done", [False, True])
def test_a_stream_that_ends_too_early(server, done):
    """Without a reason and without its last word it was cut off; with the last word it is whole."""
    server.behave = streamed(WORDS[0], WORDS[1], done=done)
    if done:
        assert answered(server.url, stream=True)[0].text == "Hello"
    else:
        error, chunks = failed(server.url, stream=True)
        assert (error.kind, error.may_be_billed, len(chunks)) == ("interrupted", True, 2)


@BOTH
@pytest.mark.parametrize(
    ("status", "kind", "billed"),
    [
        (400, "bad request", False),
        (401, "server", False),
        (403, "server", False),
        (404, "server", False),
        (408, "timeout", True),
        (413, "bad request", False),
        (422, "bad request", False),
        (429, "rate limit", False),
        (500, "server", True),
        (502, "server", True),
        (503, "server", False),
        (529, "server", False),
    ],
)
def test_statuses(server, status, kind, billed, stream):
    server.behave = lambda sock, body: send(sock, {"error": {"message": "no\x1b[2J way"}}, status)
    error, _ = failed(server.url, stream=stream)
    assert (error.kind, error.status, error.may_be_billed) == (kind, status, billed)
    assert error.cost_usd == pytest.approx(worst_usd(server) if billed else 0.0)
    assert "way" in error.message and "\x1b" not in error.message and len(server.bodies) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "1.5"}, 1.5),
        ({"retry_after_ms": "250"}, 0.25),
        ({"retry_after": "-3"}, 0.0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_seconds(server, headers, seconds):
    server.behave = lambda sock, body: send(sock, {"error": {"message": "busy"}}, 429, **headers)
    error, _ = failed(server.url)
    assert (error.kind, error.retry_after_s, error.cost_usd) == ("rate limit", seconds, 0.0)


def test_retry_after_as_a_date(server):
    date = formatdate(time.time() + 30, usegmt=True)
    server.behave = lambda sock, body: send(sock, b"busy", 503, retry_after=date)
    error, _ = failed(server.url)
    assert error.retry_after_s is not None and 25 < error.retry_after_s <= 30 and error.kind == "server"
    server.behave = lambda sock, body: send(sock, b"busy", 503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT")
    assert failed(server.url)[0].retry_after_s == 0.0


@BOTH
@pytest.mark.parametrize("body", [b"<html><body>Welcome</body></html>", b"{not json", b"", b"[1, 2]", b'{"hello": 1}'])
def test_a_reply_with_status_200_that_is_no_completion(server, body, stream):
    server.behave = lambda sock, _: send(sock, body, content_type="text/html")
    error, chunks = failed(server.url, stream=stream)
    assert (error.kind, error.may_be_billed, chunks) == ("unreadable", True, [])
    assert error.cost_usd == pytest.approx(worst_usd(server))


@BOTH
@pytest.mark.parametrize(
    ("body", "kind", "billed"),
    [
        ({"error": {"message": "slow down", "code": 429}}, "rate limit", False),
        ({"error": {"message": "rate limit exceeded"}}, "rate limit", False),
        ({"error": "model crashed"}, "server", True),
        ({"error": {"message": "too long", "code": 400}}, "bad request", False),
    ],
)
def test_an_error_inside_a_reply_with_status_200(server, body, kind, billed, stream):
    server.behave = lambda sock, _: send(sock, body)
    error, _ = failed(server.url, stream=stream)
    assert (error.kind, error.may_be_billed) == (kind, billed)


@pytest.mark.parametrize("name", [b"", b"event: error\n"])
def test_an_error_event_in_a_stream(server, name):
    def behave(sock, body):
        begin(sock)
        for value in sent:
            part(sock, event(value))
        part(sock, name + event({"error": {"message": "overloaded", "code": 503}}))
        end(sock)

    server.behave, sent = behave, []
    error, chunks = failed(server.url, stream=True)
    assert (error.kind, error.status, error.may_be_billed, chunks) == ("server", 503, False, [])
    sent = WORDS[:2]
    error, chunks = failed(server.url, stream=True)
    assert (error.kind, error.status, error.may_be_billed, len(chunks)) == ("server", 503, True, 2)


def test_an_error_beside_a_part_of_the_answer(server):
    """As OpenRouter ends a stream that its provider broke off."""
    last = chunk("", finish_reason="error") | {"error": {"code": 502, "message": "provider disconnected"}}
    server.behave = streamed(*WORDS[:2], last)
    error, chunks = failed(server.url, stream=True)
    assert (error.kind, error.status, len(chunks)) == ("server", 502, 2) and "disconnected" in error.message
    server.behave = lambda sock, body: send(sock, completion("half") | {"error": {"code": 502, "message": "gone"}})
    assert failed(server.url)[0].kind == "server"


def test_an_event_that_is_no_json(server):
    server.behave = streamed(WORDS[1], b"{broken")
    error, chunks = failed(server.url, stream=True)
    assert (error.kind, error.may_be_billed, len(chunks)) == ("unreadable", True, 1)


@BOTH
def test_a_small_reply_that_unpacks_to_a_large_one(server, stream):
    bomb = gzip.compress(b" " * 50_000_000)
    server.behave = lambda sock, body: send(sock, bomb, content_encoding="gzip", content_type="text/event-stream")
    error, _ = failed(server.url, stream=stream)
    assert (error.kind, error.may_be_billed) == ("unreadable", True) and "longer than" in error.message


@BOTH
def test_a_reply_without_end(server, stream):
    def behave(sock, body):
        begin(sock)
        while True:
            part(sock, b": no end\n" * 10_000)

    server.behave = behave
    error, _ = failed(server.url, stream=stream)
    assert (error.kind, error.may_be_billed) == ("unreadable", True) and "longer than" in error.message


def test_packing_that_was_not_asked_for_and_packing_that_is_broken(server):
    server.behave = lambda sock, body: send(sock, b"???", content_encoding="zstd")
    assert failed(server.url)[0].kind == "unreadable"
    server.behave = lambda sock, body: send(sock, b"no gzip", content_encoding="gzip")
    assert failed(server.url)[0].kind == "unreadable"


@BOTH
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(server, status, stream):
    server.behave = lambda sock, body: send(sock, {}, status, location=f"{server.url}/other")
    error, _ = failed(server.url, stream=stream)
    assert (error.kind, error.status, error.may_be_billed) == ("server", status, False)
    assert "redirect" in error.message and len(server.bodies) == 1


@pytest.mark.parametrize("reason", ["length", "stop", "content_filter", None])
@BOTH
def test_an_empty_reply_is_billed_and_no_answer(server, stream, reason):
    if stream:
        server.behave = streamed(WORDS[0], chunk(finish_reason=reason), chunk(usage=USAGE))
    else:
        server.behave = lambda sock, body: send(sock, completion("", finish_reason=reason, usage=USAGE))
    error, chunks = failed(server.url, stream=stream)
    assert (error.kind, error.may_be_billed, chunks) == ("empty", True, [])
    assert error.cost_usd == pytest.approx(COST_USD)


def test_a_server_that_goes_on_after_its_last_word(server, monkeypatch):
    """The answer is whole, so that it counts; and neither connection nor reader wait long."""
    monkeypatch.setattr("experts.live.openai.AFTER_FINISH_S", 0.2)

    def behave(sock, body):
        begin(sock)
        for value in [*WORDS, *([chunk(usage=USAGE)] if says_done else [])]:
            part(sock, event(value))
        if says_done:
            part(sock, DONE)
        server.hang()

    server.behave = behave
    for says_done in (True, False):
        whole, chunks = answered(server.url, stream=True)
        assert whole.text == "Hello world" and len(chunks) == 5
        assert whole.usage.source == ("reported" if says_done else "assumed")


@BOTH
def test_a_call_that_waits_for_its_turn_is_not_billed(server, stream):
    import asyncio

    server.behave = server.hang

    async def run():
        expert = LiveOpenAI(spec(server.url, concurrency=1))
        first = expert.stream(request(), 5, 5)
        await asyncio.sleep(0.1)
        second = asyncio.create_task(expert.complete(request(), 0.2))
        outcome = await asyncio.gather(second, return_exceptions=True)
        await expert.close()
        return outcome[0], await asyncio.gather(first.finish(), return_exceptions=True)

    second, (first,) = asyncio.run(run())
    assert (second.kind, second.may_be_billed, second.cost_usd) == ("timeout", False, 0.0) and len(server.bodies) == 1
    assert (first.kind, first.may_be_billed) == ("interrupted", True)


def test_no_error_shows_a_secret(server, monkeypatch):
    key = "sk-abcdefghijklmnop1234"
    monkeypatch.setenv("SOME_KEY", key)
    server.behave = lambda sock, body: send(sock, {"error": {"message": f"bad key {key}"}}, 401)
    error, _ = failed(server.url, api_key_env="SOME_KEY")
    assert key not in error.message and key not in str(error) and "[redacted]" in error.message
    assert server.headers[0]["authorization"] == f"Bearer {key}"
    server.behave = lambda sock, body: send(sock, completion(f"the key is {key}"))
    whole, _ = answered(server.url, api_key_env="SOME_KEY")
    assert key not in whole.text and key not in str(whole.body)
    server.behave = streamed(chunk(f"it is {key}"), chunk(finish_reason="stop"))
    whole, chunks = answered(server.url, stream=True, api_key_env="SOME_KEY")
    assert key not in str(chunks) and key not in whole.text


def test_a_request_without_a_bound_on_its_cost_is_not_sent(server):
    error, _ = failed(server.url, request([{"type": "file", "file": {"file_id": "f"}}]))
    assert error.kind == "bad request" and not server.bodies
    asked = request([{"type": "file", "file": {"file_id": "f"}}])
    assert math.isinf(LiveOpenAI(spec(server.url)).worst_usd(asked))
