"""A server with OpenAI's API whose models answer from a table, and that says what it has billed; run as a program.

The bill of an answer is its cost in the table, in tokens of a millionth of a dollar each; the prompt is free. A request
that allows fewer tokens is cut off there, and billed that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections import defaultdict
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from leeroo_env.builtin import resolve

PARTS = 4  # of a streamed answer


class Answers:
    """The answers of a table's experts by question, and the bills so far in micro-dollars."""

    def __init__(self, table_name: str, usd_scale: float, delay_s: float):
        table = resolve(table_name)
        self.delay_s = delay_s
        self.rows = {text: row for row, text in enumerate(table.queries["text"].to_pylist())}
        self.experts = list(table.experts)
        columns = [table.answers[name].to_pylist() for name in ("query_id", "expert", "output")]
        self.texts = {(query, expert): text for query, expert, text in zip(*columns, strict=True)}
        self.ids = table.queries["query_id"].to_pylist()
        self.tokens = (table.costs_usd.double() * usd_scale * 1e6).round().long().clamp(min=1).tolist()
        self.bills: defaultdict[str, int] = defaultdict(int)
        self.calls: list[dict[str, Any]] = []

    def of(self, body: dict[str, Any]) -> tuple[str, int, str]:
        """Text, tokens and finish reason."""
        model, question = body["model"], body["messages"][-1]["content"]
        row, k = self.rows.get(question, 0), self.experts.index(model)
        tokens, most = self.tokens[row][k], body["max_tokens"]
        text = self.texts.get((self.ids[row], model)) or "I do not know"
        return (text, tokens, "stop") if tokens <= most else ("and", most, "length")


def app_of(answers: Answers) -> Starlette:
    async def chat(request: Request) -> Response:
        body = await request.json()
        answers.calls.append(body)
        text, tokens, reason = answers.of(body)
        answers.bills[body["model"]] += tokens
        if answers.delay_s:
            await asyncio.sleep(answers.delay_s)
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}
        if body.get("stream"):
            return StreamingResponse(events(text, reason, usage), media_type="text/event-stream")
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return JSONResponse({"id": "1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})

    async def events(text: str, reason: str, usage: dict[str, int]) -> Any:
        size = -(-len(text) // PARTS)
        parts = [text[i : i + size] for i in range(0, len(text), size)]
        for i, part in enumerate(parts):
            delta = {"content": part} | ({"role": "assistant"} if i == 0 else {})
            yield event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        yield event({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    async def bills(request: Request) -> Response:
        return JSONResponse({"micro_usd": answers.bills, "calls": len(answers.calls)})

    async def last(request: Request) -> Response:
        return JSONResponse(answers.calls[-1] if answers.calls else {})

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/bills", bills), Route("/last", last)]
    return Starlette(routes=routes)


def event(data: dict[str, Any]) -> str:
    return "data: " + json.dumps({"id": "1", "object": "chat.completion.chunk", "model": "m", **data}) + "\n\n"


def main(table: str, usd_scale: str = "1", delay_s: str = "0", port: str = "0") -> None:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", int(port)))
    listening.listen(2048)
    print(listening.getsockname()[1], flush=True)
    config = uvicorn.Config(app_of(Answers(table, float(usd_scale), float(delay_s))), log_level="warning")
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
