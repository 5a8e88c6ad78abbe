"""Runs the server and table-backed experts as programs, as a user does."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import uvicorn
import yaml

from agents.server import logs
from agents.server.app import create_app
from agents.server.config import ADMIN_KEY, ServerConfig
from agents.server.connections import BoundedHttp
from agents.server.gateway import Gateway
from agents.server.journal import Journal
from agents.server.money import Ledger
from agents.server.service import load
from agents.server.versions import Versions

ROOT = Path(__file__).parents[3]
ADMIN = "admin-key-of-a-test"
USD_PER_MTOK = 1.0  # of the table-backed experts: a token is a micro-dollar


@dataclass
class Running:
    """A server that runs; `experts_url` is that of the experts behind it."""

    url: str
    database: str
    experts_url: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def client(self, secret: str, **kwargs: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=secret, **{"max_retries": 0, **kwargs})

    def key(self, name: str, usd: float | None = None, **kwargs: Any) -> str:
        """A new key."""
        ledger = Ledger.open(self.database)
        try:
            return ledger.add_key(name, usd, kwargs.pop("per", "total"), **kwargs)
        finally:
            ledger.close()

    def spent(self, name: str) -> int:
        """What a key was charged, in micro-dollars, when its calls in flight are settled: a moment after the answer."""
        ledger = Ledger.open(self.database)
        try:
            deadline = time.monotonic() + 5
            while any(a.reserved_micro for a in ledger.accounts() if a.name == name) and time.monotonic() < deadline:
                time.sleep(0.01)
            return sum(row.charge.micro_usd for row in ledger.recent(100_000) if row.key == name)
        finally:
            ledger.close()

    def billed(self) -> dict[str, int]:
        """What the experts have billed so far, in micro-dollars by model."""
        bills: dict[str, int] = get_json(f"{self.experts_url}/bills")["micro_usd"]
        return bills

    def kill(self) -> None:
        """kill -9 of the server and all of its workers."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)


@contextlib.contextmanager
def table_experts(table: Path, delay_s: float = 0.0) -> Iterator[str]:
    """The address of experts that answer from a table."""
    command = [sys.executable, "-m", "tests.agents.server.table_upstream", str(table), "1", str(delay_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def write_pool(path: Path, names: list[str], experts_url: str, **fields: Any) -> Path:
    """A pool.yaml of table-backed experts; `fields` are those of all of them, or by name those of one."""
    own = {name: fields.pop(name) for name in names if name in fields}
    common = {
        "backend": "openai",
        "base_url": f"{experts_url}/v1",
        "api_key_env": None,
        "usd_per_mtok_in": 0,
        "usd_per_mtok_out": USD_PER_MTOK,
        "max_tokens": 1_000_000,
        **fields,
    }
    experts = [{"name": name, "model": name, **common, **own.get(name, {})} for name in names]
    path.write_text(yaml.safe_dump({"experts": experts}))
    return path


@contextlib.contextmanager
def serving(
    run_dir: Path, pool: Path, database: str, directory: Path, experts_url: str = "", **settings: Any
) -> Iterator[Running]:
    """A server in a thread of this process."""
    config = ServerConfig(run_dir=run_dir, pool=pool, database=database, **settings)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    os.environ[ADMIN_KEY] = ADMIN
    log = directory / f"server-{listening.getsockname()[1]}.log"
    handler = logging.FileHandler(log)
    logs.log.addHandler(handler)
    logs.log.setLevel(logging.INFO)
    http: Any = {"http": BoundedHttp, "ws": "none", "timeout_graceful_shutdown": 20}
    server = uvicorn.Server(uvicorn.Config(create_app(config), log_level="warning", **http))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "it did not start"
            time.sleep(0.02)
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", database, experts_url, log)
    finally:
        server.should_exit = True
        thread.join()
        logs.log.removeHandler(handler)


@contextlib.contextmanager
def serving_process(
    run_dir: Path, pool: Path, database: str, directory: Path, experts_url: str = "", *options: str, port: int = 0
) -> Iterator[Running]:
    """A server as `leeroo serve` runs it, with its workers a group of processes."""
    port = port or free_port()
    log = directory / f"server-{port}.log"
    command = [sys.executable, "-m", "agents.server.command", str(run_dir), "--pool", str(pool)]
    command += ["--port", str(port), "--database", database, *options]
    environment = {**os.environ, ADMIN_KEY: ADMIN, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    running = Running(f"http://127.0.0.1:{port}", database, experts_url, log, process)
    try:
        _wait(running)
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        running.kill()


def gateway_of(config: ServerConfig, ledger: Ledger, journal: Journal, directory: Path) -> Gateway:
    """What answers requests, without a server."""
    versions = Versions(directory / "versions")
    return load(config, versions, versions.begin(config), ledger, journal).first


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(running: Running) -> None:
    """Until the server answers."""
    for _ in range(1_200):
        if running.process is not None and running.process.poll() is not None:
            raise AssertionError(running.log.read_text())
        with contextlib.suppress(OSError):
            get_json(f"{running.url}/health")
            return
        time.sleep(0.1)
    raise AssertionError(f"no answer: {running.log.read_text()}")


def first_key(running: Running) -> str:
    """The key that was made at the start, as it was shown."""
    shown = re.search(r"LEEROO_API_KEY=(\S+)", running.log.read_text())
    assert shown is not None
    return shown[1]
