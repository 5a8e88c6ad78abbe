"""Starts the server.

    leeroo serve runs/mine --pool pool.yaml

Exit codes: 0 it was stopped; 2 bad input.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from agents.server.config import ADMIN_KEY, ServerConfig
from agents.server.defaults import database
from agents.serving.defaults import budget_of, compare_of, pool_of
from leeroo_env.cli import exit_code
from leeroo_env.errors import InputError

if TYPE_CHECKING:
    from agents.server.money import Period

KEY_USD: float = 5.0
KEY_PER: Period = "day"  # of the key that is made where there is none
BACKLOG = 2_048


@dataclass(frozen=True)
class Options:
    """Answers OpenAI's API with a trained orchestrator in front of the experts of a pool."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """the directory of a training run"""
    pool: Path | None = None
    """pool.yaml with the experts; by default that of the tiny models, if the run was trained on them"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 for all"""
    port: int = 8000
    """port to listen on"""
    workers: int = 1
    """number of processes"""
    database: str | None = None
    """where keys and ledger are: sqlite:///FILE or postgresql://USER@HOST/NAME; default $LEEROO_DATABASE, then
    sqlite:///leeroo.db"""
    usd_per_query: float | None = None
    """the most that a query may cost in the mean, in dollars; by default what the run's report recommends"""
    compare: str | None = None
    """how answers are compared where several experts are asked: exact, number, multiple-choice or math; by default as
    the run's table was graded"""
    deadline_s: float = 120.0
    """how long a request may take, all attempts together"""
    threads: int = 1
    """torch threads of each process"""
    keep_texts: Path | None = None
    """directory to which questions and answers are appended, for `leeroo traffic`; by default no text is stored"""


def run(options: Options) -> int:
    """Serves until it is stopped."""
    try:
        import uvicorn

        import agents.server.app  # noqa: F401
        from agents.server.connections import BoundedHttp
    except ImportError as error:
        raise InputError(f"{error.name} is missing, which the server needs: pip install 'leeroo[serve]'") from None
    config = config_of(options)
    check(config, options)
    first_key = make_first_key(config.database)
    admin_key = os.environ.setdefault(ADMIN_KEY, secrets.token_urlsafe(18))
    config.hand_on()
    print(welcome(options, config, first_key, admin_key), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        if options.workers > 1:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        uvicorn.run(
            "agents.server.main:app",
            factory=True,
            host=options.host,
            port=options.port,
            http=BoundedHttp,
            ws="none",
            workers=options.workers,
            log_level="warning",
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=40,
            timeout_worker_healthcheck=120,  # a worker that loads its libraries does not answer
        )
    return 0


def config_of(options: Options) -> ServerConfig:
    """The settings, with what the run recommends where nothing is given. Raises InputError."""
    if options.usd_per_query is not None and not 0 < options.usd_per_query < math.inf:
        raise InputError(f"--usd-per-query {options.usd_per_query}: must be above 0")
    if not 1 <= options.deadline_s <= 86_400:
        raise InputError(f"--deadline-s {options.deadline_s}: must be from 1 to 86400")
    for name in ("workers", "threads"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} {getattr(options, name)}: must be at least 1")
    return ServerConfig(
        run_dir=options.run_dir,
        pool=pool_of(options.run_dir, options.pool),
        database=options.database or database(),
        compare=options.compare or compare_of(options.run_dir),
        usd_per_query=budget_of(options.run_dir) if options.usd_per_query is None else options.usd_per_query,
        deadline_s=options.deadline_s,
        threads=options.threads,
        keep_texts=None if options.keep_texts is None else options.keep_texts.absolute(),
    )


def check(config: ServerConfig, options: Options) -> None:
    """Finds now what every worker would find when it starts. Raises InputError."""
    from agents.server.app import experts_of
    from agents.server.texts import check_texts
    from agents.serving.answer_match import by_normal_form
    from agents.serving.orchestrator import Orchestrator

    experts_of(config, Orchestrator.load(config.run_dir).experts)
    by_normal_form(config.compare)
    if config.keep_texts is not None:
        check_texts(config.keep_texts)
    with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except (OSError, OverflowError) as error:
            raise InputError(f"--host {options.host} --port {options.port}: {error}") from None


def make_first_key(database_url: str) -> str | None:
    """A key to begin with, where the ledger has none."""
    from agents.server.money import Ledger

    ledger = Ledger.open(database_url)
    try:
        return None if ledger.keys() else ledger.add_key("first", KEY_USD, KEY_PER)
    finally:
        ledger.close()


def welcome(options: Options, config: ServerConfig, first_key: str | None, admin_key: str) -> str:
    """What is said at the start: where, with which key, and how to ask."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{options.port}"
    pace = "all that a key has" if config.usd_per_query is None else f"${1000 * config.usd_per_query:.4g} per 1,000"
    lines = [f"{url}/v1 answers OpenAI's API; queries may cost {pace} in the mean; keys: leeroo keys --help"]
    if first_key is not None:
        question = '{"model": "leeroo", "messages": [{"role": "user", "content": "What is 12 + 30?"}]}'
        lines += [
            f"there was no key, so one was made, with ${KEY_USD:g} a {KEY_PER}; it is shown only now:",
            f"  export LEEROO_API_KEY={first_key}",
            f"  curl -i {url}/v1/chat/completions -H \"Authorization: Bearer $LEEROO_API_KEY\" -d '{question}'",
        ]
    known = "the key in $LEEROO_ADMIN_KEY" if ADMIN_KEY in _GIVEN else admin_key
    lines.append(f"{url}/ shows money and decisions, {url}/metrics is for Prometheus; user admin, password {known}")
    return "\n".join(lines)


_GIVEN = frozenset(os.environ)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m agents.server.command") -> int:
    """The command line. Returns the exit code: 0, 2 for bad input."""
    return exit_code(lambda: run(tyro.cli(Options, prog=prog, args=arguments)), "the server was stopped")


if __name__ == "__main__":
    raise SystemExit(main())
