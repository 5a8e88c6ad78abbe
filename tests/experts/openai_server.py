"""A server on loopback with OpenAI's API that answers by rule, counts requests, and fails on demand."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# The server's reaction to a request: a status to refuse it with, or "ok", "hang", "empty" (no choices), "no usage",
# "nothing" (all tokens spent, no text), "filtered" (no text either), "cut" (off after the first word), "echo key" or
# "escape" (an error with control codes).
Behaviour = Callable[[str, int], int | str]


def reply_to(prompt: str) -> str:
    """The answer to a prompt: its letters backwards."""
    return prompt[::-1]


def tokens(text: str) -> int:
    """The number of tokens as this server counts them: one per word."""
    return len(text.split())


def text_of(content: str | list[dict]) -> str:
    """The text of a message's content."""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


class OpenAIServer:
    """Use as a context manager; `url` is its address.

    Attributes:
        requests: how often each prompt was sent.
        answered: how often it was answered.
        answered_tokens: of these prompts and answers, which this server bills.
        bodies: every request's body.
        most_at_once: the largest number of simultaneous requests.
        behaviour: called with the prompt and its number of requests so far, from 1.
        reply: the function from a prompt to the answer.
        delay_s: seconds that each answer takes.
    """

    def __init__(self, behaviour: Behaviour = lambda prompt, time: "ok", delay_s: float = 0.0) -> None:
        self.behaviour, self.delay_s = behaviour, delay_s
        self.reply: Callable[[str], str] = reply_to
        self.requests: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.answered_tokens = 0
        self.bodies: list[dict] = []
        self.keys: set[str] = set()
        self.under_way = self.most_at_once = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = _HTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> OpenAIServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: OpenAIServer

    def log_message(self, *args: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionResetError):  # a client that was killed
            super().handle()

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if len(data) < int(self.headers["Content-Length"]):  # the client was killed
            self.close_connection = True
            return
        body = json.loads(data)
        prompt = text_of(body["messages"][-1]["content"]) if "messages" in body else body["prompt"]
        owner = self.owner
        with owner.lock:
            owner.requests[prompt] += 1
            owner.bodies.append(body)
            owner.keys.add(self.headers["Authorization"].removeprefix("Bearer "))
            owner.under_way += 1
            owner.most_at_once = max(owner.most_at_once, owner.under_way)
            times = owner.requests[prompt]
        try:
            self._react(owner.behaviour(prompt, times), body, prompt)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with owner.lock:
                owner.under_way -= 1

    def _react(self, what: int | str, body: dict, prompt: str) -> None:
        if what == "hang":
            self.owner.closing.wait(30)
            self.close_connection = True
            return
        time.sleep(self.owner.delay_s)
        if what == "echo key":
            self._send(400, {"error": {"message": f"bad header {self.headers['Authorization']}"}})
        elif what == "escape":
            self._send(400, {"error": {"message": "clear \x1b[2J me\r\u202e\x9b\x07"}})
        elif isinstance(what, int):
            self._send(what, {"error": {"message": f"refused with {what}"}})
        else:
            self._send(200, self._completion(what, body, prompt))

    def _completion(self, what: str, body: dict, prompt: str) -> dict:
        limit: int = body["max_tokens"] if "max_tokens" in body else body["max_completion_tokens"]
        text = self.owner.reply(prompt)
        text = "" if what in ("nothing", "filtered") else text.split()[0] if what == "cut" else text
        is_cut = tokens(text) > limit
        text = " ".join(text.split()[:limit]) if is_cut else text
        written = limit if what == "nothing" else tokens(text)
        usage = {"prompt_tokens": tokens(prompt), "completion_tokens": written}
        with self.owner.lock:
            self.owner.answered[prompt] += 1
            self.owner.answered_tokens += sum(usage.values())
        reasons = {"nothing": "length", "cut": "length", "filtered": "content_filter"}
        choice: dict = {"index": 0, "finish_reason": "length" if is_cut else reasons.get(what, "stop")}
        choice |= {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        reply["choices"] = [] if what == "empty" else [choice]
        return reply if what == "no usage" else reply | {"usage": usage | {"total_tokens": sum(usage.values())}}

    def _send(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After-Ms", "5")
        self.end_headers()
        self.wfile.write(data)
