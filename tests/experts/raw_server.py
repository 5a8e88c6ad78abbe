"""A server on loopback that replies with whatever bytes a test wants."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD_USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def completion(content: Any = "ok", usage: Any = GOOD_USAGE, finish_reason: Any = "stop", **message: Any) -> dict:
    """The body of a chat completion."""
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content, **message},
    }
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


class RawServer:
    """What was asked, in `prompts` and `headers`, and how to react to it, in `react`.

    `react` turns a prompt and its number of requests so far, from 1, into a status and a body: a value for JSON, bytes,
    or an iterable of bytes, which are sent one by one. A third part has more headers.
    """

    def __init__(self, url: str):
        self.url = url
        self.prompts: list[str] = []
        self.react: Callable[[str, int], tuple] = lambda prompt, time: (200, completion())


@contextmanager
def raw_server() -> Iterator[RawServer]:
    """A running server; `url` ends in /v1."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
            with lock:
                server.prompts.append(prompt)
                times = server.prompts.count(prompt)
            status, content, *rest = server.react(prompt, times)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._send(status, content, rest[0] if rest else {})

        def _send(self, status: int, content: Any, headers: dict[str, str]) -> None:
            if isinstance(content, Iterable) and not isinstance(content, (bytes, str, dict, list)):
                chunks = content
            else:
                chunks = [content if isinstance(content, bytes) else json.dumps(content).encode()]
                headers = {"Content-Length": str(len(chunks[0]))} | headers
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json", "Retry-After-Ms": "5"} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            for chunk in chunks:
                self.wfile.write(chunk)
                self.wfile.flush()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    lock = threading.Lock()
    server = RawServer(f"http://127.0.0.1:{http.server_port}/v1")
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
