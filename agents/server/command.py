"""Starts the server.

    leeroo serve runs/mine --pool pool.yaml

Exit codes: 0 it was stopped; 2 bad input.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from agents.server.config import ADMIN_KEY, ServerConfig
from agents.server.defaults import database
from agents.serving.defaults import budget_of, pool_of
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
    shadow: Path | None = None
    """the directory of a second run, whose policy decides beside the first; nothing is asked for it"""
    split: str | None = None
    """the share of conversations that the second policy answers, as 10%"""


def run(options: Options) -> int:
    """Serves until it is stopped."""
    try:
        import uvicorn

        import agents.server.app  # noqa: F401
        from agents.server.connections import BoundedHttp
    except ImportError as error:
        raise InputError(f"{error.name} is missing, which the server needs: pip install 'leeroo[serve]'") from None
    with tempfile.TemporaryDirectory(prefix="leeroo-") as directory:
        config = config_of(options, Path(directory, "versions"))
        check(config, options)
        first_key = make_first_key(config.database)
        admin_key = os.environ.setdefault(ADMIN_KEY, secrets.token_urlsafe(18))
        config.hand_on()
        print(welcome(options, config, first_key, admin_key), flush=True)
        if options.workers > 1:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        reload_on_hangup(config)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # which uvicorn calls at its end: the directory goes
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


def config_of(options: Options, versions: Path | None = None) -> ServerConfig:
    """The settings; `versions` is where workers find what they load. Raises InputError."""
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
        compare=options.compare,
        usd_per_query=options.usd_per_query,
        deadline_s=options.deadline_s,
        threads=options.threads,
        keep_texts=None if options.keep_texts is None else options.keep_texts.absolute(),
        shadow=options.shadow,
        split=split_of(options),
        versions=versions,
    )


def split_of(options: Options) -> float:
    """The share of the second policy. Raises InputError."""
    if options.shadow is not None and options.shadow.resolve() == options.run_dir.resolve():
        raise InputError(f"--shadow {options.shadow}: is the run whose policy answers; give another one")
    if options.split is None:
        return 0.0
    if options.shadow is None:
        raise InputError(f"--split {options.split}: goes with --shadow RUN_DIR, whose policy gets this share")
    share = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)%", options.split)
    if share is None or not 0 < float(share[1]) < 100:
        raise InputError(f"--split {options.split}: must be a share of conversations above 0% and below 100%, as 10%")
    return float(share[1]) / 100


def check(config: ServerConfig, options: Options) -> None:
    """Finds now what every worker would find when it starts, and has them start with the same. Raises InputError."""
    from agents.server.service import experts_of, read
    from agents.server.texts import check_texts
    from agents.server.versions import Versions
    from agents.serving.answer_match import by_normal_form

    assert config.versions is not None
    versions = Versions(config.versions)
    number = versions.begin(config)
    read(config, versions, number)
    experts_of(versions.pool(number, config.pool), {})
    by_normal_form(config.compare or "exact")
    if config.keep_texts is not None:
        check_texts(config.keep_texts)
    with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except (OSError, OverflowError) as error:
            raise InputError(f"--host {options.host} --port {options.port}: {error}") from None


def reload_on_hangup(config: ServerConfig) -> None:
    """Has SIGHUP read pool and run again, in place of uvicorn's restart of all workers, which breaks connections off.
    Where the terminal is gone from which the server was started, it is stopped."""
    from uvicorn.supervisors import Multiprocess

    from agents.server.versions import Versions

    assert config.versions is not None
    versions, had_terminal = Versions(config.versions), os.isatty(0)

    def hang_up(*_: object) -> None:
        if had_terminal and not os.isatty(0):
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            versions.ask()

    signal.signal(signal.SIGHUP, hang_up)
    Multiprocess.handle_hup = hang_up  # type: ignore[method-assign, assignment]


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
    usd_per_query = budget_of(config.run_dir) if config.usd_per_query is None else config.usd_per_query
    pace = "all that a key has" if usd_per_query is None else f"${1000 * usd_per_query:.4g} per 1,000"
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
