"""Connections: kept open, left alone when the server may have closed them, through a proxy where one is named."""

import asyncio
import gzip
import json
import zlib

import pytest

from experts.live import connection as module
from experts.live.openai import LiveOpenAI
from tests.experts.live.upstream import (
    WORDS,
    answered,
    begin,
    completion,
    end,
    event,
    failed,
    head,
    part,
    request,
    send,
    spec,
    streamed,
)


def connections_of(server, times: int, pause_s: float = 0.0, stream: bool = False) -> int:
    """How many connections so many calls take, one after the other."""
    ports, behave = set(), server.behave

    def record(sock, body):
        ports.add(sock.getpeername()[1])
        behave(sock, body)

    server.behave = record

    async def run():
        expert = LiveOpenAI(spec(server.url))
        for _ in range(times):
            if stream:
                assert (await expert.stream(request(), 5, 5).finish()).text == "Hello world"
            else:
                assert (await expert.complete(request(), 5)).text == "ok"
            await asyncio.sleep(pause_s)
        await expert.close()

    asyncio.run(run())
    assert len(server.bodies) == times
    return len(ports)


def test_a_connection_is_used_again(server):
    assert connections_of(server, 5) == 1


def test_so_is_one_that_streamed(server):
    server.behave = streamed(*WORDS)
    assert connections_of(server, 5, stream=True) == 1


@pytest.mark.parametrize("how", ["says so", "does not"])
def test_a_connection_that_the_server_closes_is_not(server, how):
    def behave(sock, body):
        send(sock, completion(), **({"connection": "close"} if how == "says so" else {}))
        sock.shutdown(2)

    server.behave = behave
    assert connections_of(server, 3, pause_s=0.05) == 3


def test_nor_one_that_was_idle_for_long(server, monkeypatch):
    monkeypatch.setattr(module, "IDLE_S", 0.05)
    assert connections_of(server, 3, pause_s=0.1) == 3


def test_nor_one_on_which_more_came_than_was_asked_for(server):
    server.behave = lambda sock, body: (send(sock, completion()), send(sock, completion("old")))
    assert connections_of(server, 3, pause_s=0.05) == 3


def test_a_reply_without_length_ends_with_its_connection(server):
    def behave(sock, body):
        sock.sendall(head(200, {"content-type": "application/json"}) + json.dumps(completion()).encode())
        sock.shutdown(2)

    server.behave = behave
    assert answered(server.url)[0].text == "ok"


def test_what_is_no_http(server):
    for data in (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000 + b"\r\n"):
        server.behave = lambda sock, body, data=data: (sock.sendall(data), sock.shutdown(2))
        assert failed(server.url)[0].kind == "interrupted"


def test_what_comes_before_the_head_is_passed_over(server):
    server.behave = lambda sock, body: (sock.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n"), send(sock, completion()))
    assert answered(server.url)[0].text == "ok"


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)]
)
def test_packed_replies(server, encoding, pack):
    data = pack(b"".join(map(event, [*WORDS, b"[DONE]"])))

    def behave(sock, body):
        sock.sendall(
            head(
                200, {"content-type": "text/event-stream", "content-encoding": encoding, "transfer-encoding": "chunked"}
            )
        )
        for i in range(0, len(data), 9):
            part(sock, data[i : i + 9])
        end(sock)

    server.behave = behave
    assert answered(server.url, stream=True)[0].text == "Hello world"
    assert server.headers[0]["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("stream", [False, True])
def test_a_proxy(server, stream, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, server.url.removesuffix("/v1"))
    monkeypatch.setenv("no_proxy", "elsewhere.invalid")
    server.behave = streamed(*WORDS) if stream else lambda sock, body: send(sock, completion())
    whole, _ = answered("http://somewhere.invalid/v1", stream=stream)
    assert whole.text in ("ok", "Hello world") and server.paths == ["http://somewhere.invalid/v1/chat/completions"]
    assert failed("http://elsewhere.invalid/v1")[0].kind == "connect"
    server.behave = lambda sock, body: (begin(sock), part(sock, event(WORDS[1])), sock.shutdown(2))
    assert failed("http://somewhere.invalid/v1", stream=stream)[0].kind == "interrupted"
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert failed("http://somewhere.invalid/v1")[0].kind == "connect"


def test_a_key_that_no_head_can_hold_is_not_shown(server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "first-line\nsecond-line")
    error, _ = failed(server.url, api_key_env="SOME_KEY")
    assert (error.kind, error.may_be_billed) == ("connect", False) and "line\n" not in error.message
    assert "second" not in error.message and not server.bodies


def test_a_name_that_does_not_exist():
    error, _ = failed("http://does-not-exist.invalid/v1")
    assert (error.kind, error.may_be_billed) == ("connect", False)
