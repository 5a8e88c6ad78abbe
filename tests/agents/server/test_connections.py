"""Clients that send or read slowly, or without end, are cut off; what they reserved is settled."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from agents.server import app, connections
from agents.server.money import Ledger
from leeroo_env import ExpertTable
from tests.agents.server.running import Running, get_json, serving, write_pool
from tests.experts.live.upstream import Upstream, begin, chunk, end, event, part, upstream

BODY = json.dumps({"model": "large", "messages": [{"role": "user", "content": "x"}], "stream": True}).encode()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short limits for the connections of a test."""
    for name in ("HEAD_S", "IDLE_S", "UNREAD_S"):
        monkeypatch.setattr(connections, name, 0.6)
    monkeypatch.setattr(connections, "LINGER_S", 0.3)
    monkeypatch.setattr(app, "SLOWEST_CLIENT_S", 0.6)


def connect(running: Running) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def head(secret: str, *fields: str, method: str = "POST", path: str = "/v1/chat/completions") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", f"authorization: Bearer {secret}", *fields, "", ""]
    return "\r\n".join(lines).encode()


def read_until_closed(sock: socket.socket, drip: bytes = b"", most_s: float = 5.0) -> bytes:
    """What comes until the other side closes, while it is sent `drip` again and again."""
    sock.settimeout(0.05)
    received, deadline = b"", time.monotonic() + most_s
    while time.monotonic() < deadline:
        try:
            if drip:
                sock.sendall(drip)
            data = sock.recv(1 << 16)
            if not data:
                return received
            received += data
        except TimeoutError:
            continue
        except OSError:
            return received
    raise AssertionError(f"still open; it brought {received[:100]!r}")


SLOW: dict[str, tuple[Callable[[str], bytes], bytes, int | None]] = {
    "nothing": (lambda secret: b"", b"", None),
    "line ends": (lambda secret: b"", b"\r\n", None),
    "head": (lambda secret: b"GET /health HTTP/1.1\r\n", b"a: b\r\n", None),
    "value": (lambda secret: b"GET /health HTTP/1.1\r\na: ", b"b", None),
    "body": (lambda secret: head(secret, "content-length: 100000"), b" ", 408),
    "body without a key": (lambda secret: head("no", "content-length: 100000"), b" ", 401),
    "body that is not read": (lambda secret: head(secret, "content-length: 100000", path="/v1/models"), b" ", 405),
    "chunks": (lambda secret: head(secret, "transfer-encoding: chunked"), b"1\r\n \r\n", 408),
    "after an answer": (lambda secret: head(secret, method="GET", path="/health"), b"\r\n", 200),
    "next head": (lambda secret: head(secret, method="GET", path="/health") + b"GET / HTTP/1.1\r\n", b"a: b\r\n", 200),
    "upgrade": (lambda secret: head(secret, "connection: upgrade", "upgrade: h2c", path="/health"), b"x", 405),
    "expects": (lambda secret: head("no", "content-length: 9", "expect: 100-continue"), b"", 401),
}


@pytest.mark.parametrize("name", SLOW)
def test_who_sends_slowly_is_cut_off(hasty: None, server: Running, secret: str, name: str):
    begins, drip, status = SLOW[name]
    with connect(server) as sock:
        sock.sendall(begins(secret))
        received = read_until_closed(sock, drip)
    assert received.split()[1:2] == ([] if status is None else [str(status).encode()])


ENDLESS = {
    "field": (b"GET /health HTTP/1.1\r\na: ", b"x" * 10_000),
    "fields": (b"GET /health HTTP/1.1\r\n", b"a: b\r\n" * 2_000),
    "address": (b"GET /", b"x" * 10_000),
    "chunk": (b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;", b"x" * 10_000),
    "trailers": (b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 2_000),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_who_sends_without_end_is_cut_off(server: Running, name: str):
    start, more = ENDLESS[name]
    with connect(server) as sock, contextlib.suppress(OSError):
        sock.sendall(start)
        for _ in range(1_000):
            sock.sendall(more)
            time.sleep(0.002)
        pytest.fail("all of it was taken")


def test_a_head_that_is_too_large_is_refused_in_words(server: Running):
    with connect(server) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\n")
        for _ in range(8):
            time.sleep(0.01)
            sock.sendall(b"a: " + b"x" * 10_000 + b"\r\n")
        assert read_until_closed(sock).startswith(b"HTTP/1.1 431 ")


def test_a_body_in_the_smallest_chunks_is_read(server: Running, secret: str):
    body = BODY.replace(b"true", b"false").replace(b'"x"', b'"' + b"x" * 30_000 + b'"')
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with connect(server) as sock:
        sock.sendall(head(secret, "transfer-encoding: chunked", "connection: close") + chunks)
        assert read_until_closed(sock, most_s=20).startswith(b"HTTP/1.1 200 ")


def test_requests_that_come_together_are_all_answered(server: Running, secret: str):
    one = head(secret, method="GET", path="/v1/models")
    with connect(server) as sock:
        sock.sendall(one * 30 + head(secret, "connection: close", method="GET", path="/v1/models"))
        assert read_until_closed(sock).count(b"HTTP/1.1 200 ") == 31


def test_many_idle_connections_keep_nobody_out(hasty: None, server: Running, secret: str):
    idle = [connect(server) for _ in range(500)]
    try:
        assert get_json(f"{server.url}/health") == {"status": "ok"}
        for sock in idle:
            assert read_until_closed(sock) == b""
    finally:
        for sock in idle:
            sock.close()


def test_answers_that_nobody_reads_are_dropped(hasty: None, caplog: pytest.LogCaptureFixture):
    async def large(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100000")]})
        await send({"type": "http.response.body", "body": b"x" * 100_000})

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config: Any = {"http": connections.BoundedHttp, "ws": "none", "lifespan": "off", "log_level": "warning"}
    server = uvicorn.Server(uvicorn.Config(large, **config))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        with socket.create_connection(listening.getsockname(), timeout=10) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 300)
            deadline = time.monotonic() + 10
            while not server.server_state.total_requests:
                time.sleep(0.01)
            while server.server_state.connections:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert read_until_closed(sock).count(b"HTTP/1.1 200 ") < 300
    finally:
        server.should_exit = True
        thread.join()
    assert "Traceback" not in caplog.text


@pytest.fixture(scope="module")
def secret(server: Running) -> str:
    return server.key("slow client")


@pytest.fixture(scope="module")
def talkative() -> Iterator[Upstream]:
    """An expert whose streams are long."""

    def behave(sock: socket.socket, body: dict[str, Any]) -> None:
        begin(sock)
        for _ in range(120):
            part(sock, event(chunk("x" * 100_000)))
        part(sock, event(chunk(finish_reason="stop")))
        part(sock, event(chunk(usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7})))
        part(sock, event(b"[DONE]"))
        end(sock)

    with upstream() as one:
        one.behave = behave
        yield one


def test_a_stream_that_nobody_reads_is_settled_and_dropped(
    hasty: None, run_dir: Path, dear_tiny: Path, talkative: Upstream, tmp_path: Path
):
    names = list(ExpertTable.load(dear_tiny).experts)
    pool = write_pool(tmp_path / "pool.yaml", names, talkative.url.removesuffix("/v1"))
    with serving(run_dir, pool, f"sqlite:///{tmp_path}/leeroo.db", tmp_path) as running:
        secret = running.key("deaf", 5.0)
        with connect(running) as sock:
            sock.sendall(head(secret, f"content-length: {len(BODY)}") + BODY)
            ledger = Ledger.open(running.database)
            deadline = time.monotonic() + 20
            while not (rows := ledger.recent()):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            (account,) = [one for one in ledger.accounts() if one.name == "deaf"]
            ledger.close()
            received = read_until_closed(sock)
        assert b"200 OK" in received and b"[DONE]" not in received
        assert account.reserved_micro == 0 and account.spent_micro == 4 and rows[0].charge.outcome == "cancelled"
