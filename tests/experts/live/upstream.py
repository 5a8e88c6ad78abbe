"""A server on loopback that does whatever a test wants with the socket of each request, and makers of what it sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from experts.live import ChatRequest, Chunk, Completion, UpstreamError
from experts.live.openai import LiveOpenAI
from experts.specs import OpenAISpec
from tests.experts.raw_server import completion

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
COST_USD = 20e-6  # of that, at the prices of `expert`


class Upstream:
    """Calls `behave` with the socket and the body of each request; `bodies` and `headers` have what was sent."""

    def __init__(self, url: str):
        self.url = url
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.connections: set[int] = set()  # that are open
        self.behave: Callable[[socket.socket, dict], None] = lambda sock, body: send(sock, completion())
        self.closing = threading.Event()

    def hang(self, *_: object) -> None:
        self.closing.wait(20)


@contextlib.contextmanager
def upstream() -> Iterator[Upstream]:
    """A running server; `url` ends in /v1."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            server.connections.add(id(self))
            try:
                self.serve()
            finally:
                server.connections.discard(id(self))

        def serve(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                while line := self.rfile.readline():
                    pairs = (field.decode().split(":", 1) for field in iter(self.rfile.readline, b"\r\n"))
                    headers = {name.lower(): value.strip() for name, value in pairs}
                    body = json.loads(self.rfile.read(int(headers["content-length"])))
                    with lock:
                        server.paths.append(line.split()[1].decode())
                        server.headers.append(headers)
                        server.bodies.append(body)
                    server.behave(self.connection, body)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128

    tcp, lock = Server(("127.0.0.1", 0), Handler), threading.Lock()
    server = Upstream(f"http://127.0.0.1:{tcp.server_address[1]}/v1")
    threading.Thread(target=tcp.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        tcp.shutdown()
        tcp.server_close()


def send(sock: socket.socket, body: Any, status: int = 200, **headers: str) -> None:
    """A whole reply; bytes as they are, everything else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(data))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    sock.sendall(head(status, fields) + data)


def head(status: int, fields: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode()


def begin(sock: socket.socket, content_type: str = "text/event-stream") -> None:
    """The head of a reply in parts."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(head(200, {"content-type": content_type, "transfer-encoding": "chunked"}))


def part(sock: socket.socket, data: bytes) -> None:
    sock.sendall(b"%x\r\n%s\r\n" % (len(data), data))


def end(sock: socket.socket) -> None:
    sock.sendall(b"0\r\n\r\n")


def reset(sock: socket.socket) -> None:
    """Ends a connection with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(sock.detach())  # close() alone leaves it open for the handler's file


def chunk(content: str | None = None, finish_reason: str | None = None, usage: Any = None, **delta: Any) -> dict:
    delta |= {} if content is None else {"content": content}
    value = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "upstream-model"}
    value |= {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}
    return value if usage is None else value | {"choices": [], "usage": usage}


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


WORDS = [chunk("", role="assistant"), chunk("Hello"), chunk(" "), chunk("world"), chunk(finish_reason="stop")]
DONE = event(b"[DONE]")


def streamed(*values: Any, done: bool = True) -> Callable[[socket.socket, dict], None]:
    """A stream of these values."""

    def behave(sock: socket.socket, body: dict) -> None:
        begin(sock)
        for value in values:
            part(sock, event(value))
        if done:
            part(sock, DONE)
        end(sock)

    return behave


def spec(url: str, **fields: Any) -> OpenAISpec:
    given = {"name": "one", "backend": "openai", "model": "m", "base_url": url, "api_key_env": None, "max_tokens": 100}
    return OpenAISpec.model_validate(given | {"usd_per_mtok_in": 1.0, "usd_per_mtok_out": 2.0} | fields)


def request(content: Any = "Say hello", max_tokens: int = 50, **settings: Any) -> ChatRequest:
    messages = content if isinstance(content, list) and "role" in content[0] else [{"role": "user", "content": content}]
    return ChatRequest(messages, settings, max_tokens)


def ask(
    url: str, asked: ChatRequest | None = None, stream: bool = False, timeout_s: float = 5.0, **fields: Any
) -> tuple[Completion | UpstreamError, list[dict]]:
    """The completion or error of one call, and the chunks that came before."""

    async def run() -> tuple[Completion | UpstreamError, list[dict]]:
        expert = LiveOpenAI(spec(url, **fields))
        chunks: list[dict] = []
        try:
            if not stream:
                return await expert.complete(asked or request(), timeout_s), chunks
            reply = expert.stream(asked or request(), timeout_s, min(timeout_s, expert.spec.first_token_s))
            async for one in reply:
                assert isinstance(one, Chunk)
                chunks.append(one.data)
            return await reply.finish(), chunks
        except UpstreamError as error:
            return error, chunks
        finally:
            await expert.close()

    return asyncio.run(run())


def answered(url: str, *args: Any, **fields: Any) -> tuple[Completion, list[dict]]:
    outcome, chunks = ask(url, *args, **fields)
    assert isinstance(outcome, Completion), outcome
    return outcome, chunks


def failed(url: str, *args: Any, **fields: Any) -> tuple[UpstreamError, list[dict]]:
    outcome, chunks = ask(url, *args, **fields)
    assert isinstance(outcome, UpstreamError), outcome
    return outcome, chunks
