"""What a collection costs a machine: processor time of an answer by both engines, and what stored answers take.

    python benchmarks/scale.py collect
    python benchmarks/scale.py store
    python benchmarks/scale.py ledger

A server on loopback, in a process of its own that is not counted, answers at once. Processor time is that of all
processes of the program, Ray's own included; of an answer it is the difference between a large and a small collection,
so that starting is not in it. Sections go to `benchmarks/SCALE.md`.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from sections import add_section, read_section

from experts.cluster import data
from experts.cluster.connect import CALLS_PER_ASKER, connect
from experts.collect.parts import part_of, write_part
from experts.collect.pipeline import collect as collect_table
from experts.collect.store import open_store
from experts.pool import load_pool
from experts.types import Answer, Query

OUT = Path(__file__).with_name("SCALE.md")
TITLE = "# What many queries cost"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


_seen: dict[int, float] = {}  # processor time by process


class Instant(asyncio.Protocol):
    """Answers every request at once, with fifty words."""

    body = json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "word " * 50}}
            ],
            "usage": {"prompt_tokens": 50, "completion_tokens": 50, "total_tokens": 100},
        }
    ).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            length = int(self.buffer[:end].lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            self.transport.write(self.head + self.body)


def serve(pipe: Connection) -> None:
    """Runs the server, and says its port; the target of a process."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


class NoEncoder:
    """Embeds every text as the same numbers, in no time."""

    info = {"model": "none", "dim": 2}

    def encode(self, texts: Any) -> np.ndarray:
        return np.ones((len(texts), 2), np.float32)


def collect(answers: int = 3000, fewer: int = 500, repeats: int = 3, workers: tuple[int, ...] = (1, 2)) -> None:
    """Processor time of an answer, asked by this program and by so many workers of a Ray cluster on this machine.

    Args:
        answers: of the large collection.
        fewer: of the small one.
        repeats: of each, alternated; medians are written.
        workers: of the cluster; each has a server's `CALLS_PER_ASKER` calls at a time. One of each is measured with
            eight calls at a time besides, the default.
    """
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}/v1"
    here_calls = [("this program", n) for n in (8, CALLS_PER_ASKER)]
    engines = [*here_calls, ("Ray", 8), *(("Ray", n * CALLS_PER_ASKER) for n in workers)]
    assert server.pid is not None
    data.GRADES_PER_PIECE = answers  # asking is measured, not Ray Data
    _seconds(url, fewer, 1, None, server.pid)  # imports what is needed
    lines = []
    for name, calls in engines:
        with nullcontext() if name == "this program" else connect(cpus=max(workers)) as cluster:
            runs = [
                [_seconds(url, size, calls, cluster, server.pid) for size in (fewer, answers)] for _ in range(repeats)
            ]
        cpu_s, wall_s = (
            statistics.median(large[i] - small[i] for small, large in runs) / (answers - fewer) for i in (0, 1)
        )
        begin_s = statistics.median(small[0] for small, _ in runs) - fewer * cpu_s
        asking = math.ceil(calls / CALLS_PER_ASKER) if cluster else 1
        lines.append(f"| {name} | {calls} | {asking} | {1e3 * cpu_s:.2f} | {begin_s:.1f} | {1 / wall_s:,.0f} |")
        print(lines[-1], flush=True)
    server.kill()
    note = (
        f"{answers:,} answers of fifty words less {fewer} (`python benchmarks/scale.py collect`), medians of "
        f"{repeats}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}. Answers a second are of a server that "
        "answers at once, on the same cores; they mean something only where nothing else runs."
    )
    if os.getloadavg()[1] > 2 + (os.cpu_count() or 1):
        lines = [f"{line.rpartition(' | ')[0]} | (other programs ran) |" for line in lines]
    head = "| engine | calls at a time | processes that ask | ms of processor time an answer | s to begin | answers/s |"
    head += "\n|---|---|---|---|---|---|"
    add_section(OUT, TITLE, "An answer", "\n".join([note, "", head, *lines]))


def _seconds(url: str, n: int, concurrency: int, cluster: Any, server: int) -> tuple[float, float]:
    """Seconds of processor time, and of the clock, of a collection of n answers."""
    with tempfile.TemporaryDirectory() as where:
        pool = Path(where) / "pool.yaml"
        pool.write_text(
            f"experts:\n  - {{name: a, backend: openai, model: m, base_url: '{url}', api_key_env: null,\n"
            f"     max_tokens: 64, usd_per_mtok_in: 1, usd_per_mtok_out: 1, concurrency: {concurrency}}}\n"
        )
        queries = [Query(f"q{i}", f"question {i} " + "word " * 50, reference="x") for i in range(n)]
        before, started = _processor_s(server), time.monotonic()
        collected = collect_table(
            load_pool(pool), queries, Path(where) / "table", NoEncoder(), max_usd=1e6, cluster=cluster
        )
        used_s, wall_s = _processor_s(server) - before, time.monotonic() - started
        assert collected.missing == 0
        if cluster is not None:
            cluster.stop()
        return used_s, wall_s


def _processor_s(without: int) -> float:
    """Processor time of this process and all that it has started, but one; of those that ended, as last seen."""
    used, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        parents[pid], used[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family and pid not in family | {without}}:
        family |= more
    _seen.update({pid: used[pid] for pid in family})
    return sum(_seen.values())


def store(answers: int = 100_000, words: int = 300) -> None:
    """What stored answers take, on disk and in the memory of a program that has opened them."""
    with tempfile.TemporaryDirectory() as where:
        texts = np.random.default_rng(0).choice([f"word{i}" for i in range(5000)], (answers, words))
        rows = [
            (f"{i:064x}", Query(f"q{i}", ""), Answer(" ".join(text), 100, words, 1e-4, 1.0))
            for i, text in enumerate(texts)
        ]
        for start in range(0, answers, 1000):
            write_part(part_of("a", rows[start : start + 1000], ""), Path(where) / f"{start // 1000:06d}.parquet")
        del rows, texts
        on_disk = sum(path.stat().st_size for path in Path(where).glob("*.parquet"))
        context = multiprocessing.get_context("spawn")
        here, there = multiprocessing.Pipe()
        process = context.Process(target=_opened, args=(where, there))
        process.start()
        seconds, resident = here.recv()
        process.join()
    text = (
        f"{answers:,} answers of {words} random words (`python benchmarks/scale.py store`): "
        f"{on_disk / answers:,.0f} bytes of disk each, {resident / answers:,.0f} of memory in the program that "
        f"collects, which reads {answers / seconds:,.0f} a second when it begins (processor time)."
    )
    print(text)
    add_section(OUT, TITLE, "Stored answers", text)


def _opened(directory: str, pipe: Connection) -> None:
    """Opens a store; sends seconds of processor time and the bytes that it added to memory."""
    before, started = _resident(), time.process_time()
    with open_store(Path(directory)) as opened:
        assert opened.found
        pipe.send((time.process_time() - started, _resident() - before))


def ledger(database: str = "", processes: tuple[int, ...] = (1, 2), at_once: int = 100, seconds: float = 5.0) -> None:
    """Calls a second that the server's ledger reserves and settles.

    Args:
        database: postgresql://USER@HOST/NAME; a file of SQLite, made for this, if empty.
        processes: that share it, as workers or replicas do.
        at_once: calls under way in each.
        seconds: of each measurement.
    """
    context, lines = multiprocessing.get_context("spawn"), []
    for n in processes:
        with tempfile.TemporaryDirectory() as directory:
            url = database or f"sqlite:///{directory}/leeroo.db"
            pipes = [context.Pipe() for _ in range(n)]
            for _, there in pipes:
                context.Process(target=_spend, args=(url, at_once, seconds, there), daemon=True).start()
            for here, _ in pipes:
                here.recv()
            for here, _ in pipes:
                here.send("begin")
            done = sum(here.recv() for here, _ in pipes)
        lines.append(f"| {url.partition(':')[0]} | {n} | {done / seconds:,.0f} |")
        print(lines[-1], flush=True)
    known = read_section(OUT, "The ledger").splitlines()
    kept = [line for line in known if line.startswith(("| sqlite", "| postgresql")) and line.split()[1] not in lines[0]]
    text = f"`python benchmarks/scale.py ledger [--database URL]`, {at_once} calls under way in each process, on "
    text += f"{os.cpu_count()} cores that the database shares."
    head = "| database | processes | calls reserved and settled a second |\n|---|---|---|"
    add_section(OUT, TITLE, "The ledger", "\n".join([text, "", head, *kept, *lines]))


def _spend(url: str, at_once: int, seconds: float, pipe: Connection) -> None:
    """Reserves and settles until the time is over; sends the number of calls."""
    from agents.server.money import Charge, Ledger

    opened = Ledger.open(url)
    opened.add_key(name := f"key {os.getpid()}", 1e6, "total")
    keys = opened.keys()
    key_id = next(key.key_id for key in keys if key.name == name)
    pipe.send("ready")
    pipe.recv()
    done, ends = 0, time.monotonic() + seconds

    async def one() -> None:
        nonlocal done
        while time.monotonic() < ends:
            name = await opened.reserve(key_id, "request", "expert", 100, 60.0)
            await opened.settle(name, Charge(50))
            done += 1

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(at_once)))

    asyncio.run(all_of_them())
    pipe.send(done)
    opened.close()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"collect": collect, "store": store, "ledger": ledger})
