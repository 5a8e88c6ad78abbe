"""Measures what the live server adds to a call: latency at a steady rate, throughput, and time per streamed part.

    python benchmarks/server.py --run-dir runs/mine [--litellm DIR/bin/litellm]

A fake expert answers at once, so that all of the time is ours. The load generators are wrk for throughput and this
program for the rest, which sends requests at fixed times whether or not others have come back (an open loop). All run
on the same machine, which they share with the server. Writes benchmarks/SERVER.md.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import tyro
import yaml
from sections import add_section

from agents.policies.description import read_description
from agents.server.money import Ledger
from leeroo_env.builtin import resolve

RATE = 50  # requests a second
SECONDS = 20
WORDS = 100  # of a streamed answer
EVERY_S = 0.004
OUT = Path(__file__).with_name("SERVER.md")
TITLE = "# What the live server adds\n\n`python benchmarks/server.py --run-dir RUN`"


@dataclass(frozen=True)
class Options:
    """What to measure."""

    run_dir: Path
    """of a training run on the built-in table"""
    litellm: Path | None = None
    """the litellm program (`pip install 'litellm[proxy]'` in an environment of its own), to be measured beside"""
    seconds: int = SECONDS
    """of each measurement"""
    memory: int = 0
    """measures only how much memory the server takes while it answers so many requests"""
    only_upstream: int = 0
    """the port on which this is the fake expert; what the program starts itself with"""


class FakeExpert(asyncio.Protocol):
    """Answers every request at once; parts of a stream carry the time at which they were sent."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            length = int(re.search(rb"(?i)content-length: *(\d+)", self.buffer[:end])[1])  # type: ignore[index]
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            if b'"stream":true' in body.replace(b" ", b""):
                asyncio.get_running_loop().create_task(self.stream())
            else:
                self.transport.write(PLAIN)

    async def stream(self) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(WORDS):
            self.part({"choices": [{"index": 0, "delta": {"content": f"{time.monotonic()} "}, "finish_reason": None}]})
            await asyncio.sleep(EVERY_S)
        self.part({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.part({"choices": [], "usage": USAGE})
        self.write(b"data: [DONE]\n\n")
        self.transport.write(b"0\r\n\r\n")

    def part(self, value: dict[str, Any]) -> None:
        self.write(b"data: " + json.dumps({**CHUNK, **value}).encode() + b"\n\n")

    def write(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%s\r\n" % (len(data), data))


USAGE = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
MESSAGE = {"index": 0, "message": {"role": "assistant", "content": "It is 42."}, "finish_reason": "stop"}
REPLY = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [MESSAGE], "usage": USAGE}
_BODY = json.dumps(REPLY).encode()
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


async def be_expert(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(FakeExpert, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


@contextlib.contextmanager
def running(command: list[str], ready: str, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A program until it is no longer needed; yields its process id once `ready`, a URL, answers."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **(environment or {})}, start_new_session=True
        )
        try:
            for _ in range(600):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read().decode())
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(ready, timeout=5).close()
                    break
                time.sleep(0.2)
            yield process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


async def steady(
    url: str, key: str, body_of: Callable[[int], dict[str, Any]], headers_of: Any, seconds: int
) -> np.ndarray:
    """Latencies in milliseconds at RATE requests a second, [n]."""
    latencies: list[float] = []

    async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=None)) as client:

        async def one(number: int) -> None:
            headers = {"authorization": f"Bearer {key or 'none'}", **headers_of(number)}
            started = time.perf_counter()
            response = await client.post(url, json=body_of(number), headers=headers)
            latencies.append(1e3 * (time.perf_counter() - started))
            assert response.status_code == 200, response.text

        tasks, begin = [], time.perf_counter()
        for number in range(RATE * (seconds + 2)):
            await asyncio.sleep(max(0.0, begin + number / RATE - time.perf_counter()))
            tasks.append(asyncio.create_task(one(number)))
        await asyncio.gather(*tasks)
    return np.array(latencies[2 * RATE :])  # the first two seconds open connections


async def streamed(url: str, key: str, model: str, seconds: int) -> np.ndarray:
    """Milliseconds from the expert's sending of a part to its arrival, [n], two streams at a time."""
    delays: list[float] = []
    ends = time.monotonic() + seconds

    async def one(client: httpx2.AsyncClient) -> None:
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "What is 12 + 30?"}]}
        while time.monotonic() < ends:
            async with client.stream(
                "POST", url, json=body, headers={"authorization": f"Bearer {key or 'none'}"}
            ) as response:
                assert response.status_code == 200, await response.aread()
                async for line in response.aiter_lines():
                    sent = re.search(r'"content": ?"(\d+\.\d+) "', line)
                    if sent is not None:
                        delays.append(1e3 * (time.monotonic() - float(sent[1])))

    async with httpx2.AsyncClient(timeout=60) as client:
        await asyncio.gather(one(client), one(client))
    return np.array(delays)


def throughput(url: str, key: str, model: str, seconds: int) -> float:
    """Answers a second with 64 connections that never pause, by wrk."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "What is 12 + 30?"}]})
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f'wrk.method="POST"\nwrk.body=[[{body}]]\nwrk.headers["Authorization"]="Bearer {key}"\n')
        script.write('wrk.headers["Content-Type"]="application/json"\n')
        script.flush()
        command = ["wrk", "-t1", "-c64", f"-d{seconds}s", "-s", script.name, url]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in out, out
    found = re.search(r"Requests/sec: *([\d.]+)", out)
    assert found is not None
    return float(found[1])


async def memory(url: str, key: str, process: int, requests: int, texts: list[str]) -> list[tuple[int, int]]:
    """Requests answered, and megabytes that the server then had, ten times; of the requests, which are plain and
    streamed by turns, one in ten asks what nobody has asked before, one in ten goes on with a conversation."""
    address = url.removeprefix("http://").split("/")[0].split(":")
    answered, seen = 0, list[tuple[int, int]]()

    async def one(number: int) -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection(*address)
        while answered < requests:
            answered += 1
            if answered % (requests // 10) == 0:
                seen.append((answered, resident_mb(process)))
            text = f"What is {answered} + {number}?" if answered % 10 == 0 else texts[answered % len(texts)]
            messages = [{"role": "user", "content": text}]
            if answered % 10 == 1:
                messages += [{"role": "assistant", "content": str(answered)}, {"role": "user", "content": "Go on"}]
            body = json.dumps({"model": "leeroo", "stream": answered % 2 == 0, "messages": messages}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert " 200 " in head.split("\r\n")[0], head
            length = re.search(r"content-length: *(\d+)", head)
            await (reader.readexactly(int(length[1])) if length else reader.readuntil(b"0\r\n\r\n"))
        writer.close()

    await asyncio.gather(*(one(number) for number in range(128)))
    return seen


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Report:
    """Rows of the result."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, str]] = []

    def latency(self, what: str, values: np.ndarray, base: np.ndarray | None = None) -> None:
        p50, p99 = np.percentile(values, [50, 99])
        added = "" if base is None else f"{p50 - np.percentile(base, 50):.2f} / {p99 - np.percentile(base, 99):.2f}"
        self.add(what, f"{p50:.2f}", f"{p99:.2f}", added)

    def add(self, *row: str) -> None:
        self.rows.append(row)  # type: ignore[arg-type]
        print(" | ".join(row), flush=True)

    def write(self, max_calls: int) -> None:
        """Replaces the section of a policy with so many calls a query."""
        text = f"{platform.machine()}, {os.cpu_count()} cores, shared by server, fake expert and load generator; "
        text += (
            f"Python {platform.python_version()}. Latency in milliseconds at {RATE} requests a second (open loop, by "
        )
        text += "this program); answers a second by wrk with 64 connections that never pause."
        lines = [
            text,
            "",
            "| what | p50, or a second | p99 | added to the expert alone, p50 / p99 |",
            "|---|---|---|---|",
        ]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        add_section(OUT, TITLE, f"A policy of up to {max_calls} calls a query", "\n".join(lines))


def resident_mb(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) >> 10  # type: ignore[index]


def measure_memory(options: Options) -> None:
    port, texts = free_port(), resolve("tiny").queries["text"].to_pylist()[:4_000]
    itself = [sys.executable, __file__, "--run-dir", str(options.run_dir), "--only-upstream", str(port)]
    with (
        tempfile.TemporaryDirectory() as directory,
        running(itself, f"http://127.0.0.1:{port}/nothing"),
        leeroo(options.run_dir, port, Path(directory), 1) as (url, key, process),
    ):
        seen = asyncio.run(memory(url, key, process, options.memory, texts))
    lines = [memory.__doc__ or "", "", "| requests | MB |", "|---|---|", *(f"| {n:,} | {mb} |" for n, mb in seen)]
    print("\n".join(lines))
    add_section(OUT, TITLE, "Memory", "\n".join(line.strip() for line in "\n".join(lines).split("\n")))


def measure(options: Options) -> None:
    report = Report()
    port = free_port()
    expert = f"http://127.0.0.1:{port}/v1/chat/completions"
    itself = [sys.executable, __file__, "--run-dir", str(options.run_dir), "--only-upstream", str(port)]
    texts = resolve("tiny").queries["text"].to_pylist()
    embeddings = resolve("tiny").embeddings.float().numpy().astype("<f4")
    s = options.seconds

    def body(number: int, model: str = "leeroo", text: str | None = None) -> dict[str, Any]:
        return {"model": model, "messages": [{"role": "user", "content": text or texts[number % len(texts)]}]}

    def embedding(number: int) -> dict[str, str]:
        return {"leeroo-embedding": base64.b64encode(embeddings[number % len(texts)].tobytes()).decode()}

    with tempfile.TemporaryDirectory() as directory, running(itself, f"http://127.0.0.1:{port}/nothing"):
        alone = asyncio.run(steady(expert, "", body, lambda _: {}, s))
        report.latency("the expert alone", alone)
        stream_alone = asyncio.run(streamed(expert, "", "m", s))
        report.latency("one part of a stream, the expert alone", stream_alone)
        for workers in (1, 2):
            with leeroo(options.run_dir, port, Path(directory), workers) as (url, key, _):
                if workers == 1:
                    routed = asyncio.run(steady(url, key, body, lambda _: {}, s))
                    report.latency("leeroo, new texts (encoder included)", routed, alone)
                    given = asyncio.run(steady(url, key, body, embedding, s))
                    report.latency("leeroo, embedding given", given, alone)
                    named = asyncio.run(steady(url, key, lambda i: body(i, "large"), lambda _: {}, s))
                    report.latency("leeroo, expert named (pass-through)", named, alone)
                    parts = asyncio.run(streamed(url, key, "leeroo", s))
                    report.latency("leeroo, one part of a stream", parts, stream_alone)
                for model, what in (("large", "pass-through"), ("leeroo", "routed, a known text")):
                    report.add(
                        f"leeroo, {what}, {workers} worker(s)", f"{throughput(url, key, model, s):.0f}/s", "", ""
                    )
        if options.litellm is not None:
            with litellm(options.litellm, port, Path(directory)) as (url, key):
                named = asyncio.run(steady(url, key, lambda i: body(i, "large"), lambda _: {}, s))
                report.latency("litellm proxy, expert named", named, alone)
                parts = asyncio.run(streamed(url, key, "large", s))
                report.latency("litellm proxy, one part of a stream", parts, stream_alone)
                report.add("litellm proxy, pass-through, 1 worker", f"{throughput(url, key, 'large', s):.0f}/s", "", "")
    report.write(read_description(options.run_dir / "policy" / "policy.json").max_calls)


@contextlib.contextmanager
def leeroo(run_dir: Path, expert_port: int, directory: Path, workers: int) -> Iterator[tuple[str, str, int]]:
    """Our server: its address for chat completions, a key, and the number of its process."""
    common: dict[str, Any] = {
        "backend": "openai",
        "base_url": f"http://127.0.0.1:{expert_port}/v1",
        "api_key_env": None,
    }
    common |= {"usd_per_mtok_in": 0.1, "usd_per_mtok_out": 0.4, "max_tokens": 64, "concurrency": 1024}
    names = read_description(run_dir / "policy" / "policy.json").experts
    pool = directory / "pool.yaml"
    pool.write_text(yaml.safe_dump({"experts": [{"name": name, "model": name, **common} for name in names]}))
    database = f"sqlite:///{directory}/leeroo-{workers}.db"
    ledger = Ledger.open(database)
    key = ledger.add_key("benchmark", 1e6, "total")
    ledger.close()
    port = free_port()
    command = [sys.executable, "-m", "agents.server.command", str(run_dir), "--pool", str(pool), "--port", str(port)]
    command += ["--database", database, "--workers", str(workers)]
    with running(command, f"http://127.0.0.1:{port}/health") as process:
        yield f"http://127.0.0.1:{port}/v1/chat/completions", key, process


@contextlib.contextmanager
def litellm(program: Path, expert_port: int, directory: Path) -> Iterator[tuple[str, str]]:
    """litellm's proxy with the same expert."""
    base = f"http://127.0.0.1:{expert_port}/v1"
    parameters = {"model": "openai/large", "api_base": base, "api_key": "unused"}
    config = {
        "model_list": [{"model_name": "large", "litellm_params": parameters}],
        "general_settings": {"master_key": "sk-benchmark"},
        "litellm_settings": {"telemetry": False},
    }
    path = directory / "litellm.yaml"
    path.write_text(yaml.safe_dump(config))
    port = free_port()
    command = [str(program), "--config", str(path), "--port", str(port), "--num_workers", "1"]
    quiet = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with running(command, f"http://127.0.0.1:{port}/health/liveliness", quiet):
        yield f"http://127.0.0.1:{port}/v1/chat/completions", "sk-benchmark"


if __name__ == "__main__":
    given = tyro.cli(Options)
    if given.only_upstream:
        asyncio.run(be_expert(given.only_upstream))
    elif shutil.which("wrk") is None:
        raise SystemExit("error: wrk is not installed; it is Debian's package wrk")
    elif given.memory:
        measure_memory(given)
    else:
        measure(given)
