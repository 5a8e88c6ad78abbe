"""Opens the database, with transactions in which one process at a time writes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, select
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from agents.server.money.schema import SERVER_ID, counters, create_schema
from agents.server.money.types import StoreUnavailable
from leeroo_env.errors import InputError, first_line

WAIT_S = 5  # the longest wait for a connection or a lock
POSTGRESQL = {
    "connect_timeout": WAIT_S,
    "tcp_user_timeout": 2 * WAIT_S * 1000,  # milliseconds until a host that went silent counts as gone
    "keepalives_idle": WAIT_S,
}


class Store:
    """A database with the ledger's tables. Raises InputError for a URL that cannot be one, else StoreUnavailable."""

    def __init__(self, url: str, must_exist: bool = False):
        self.url = _parsed(url)
        path = self.url.database if self.url.drivername == "sqlite" else None
        if path is not None and must_exist and not Path(path).is_file():
            raise InputError(f"{url}: no such file")
        self._engine = _engine(self.url)
        self._engines = {writes: self._engine.execution_options(writes=writes) for writes in (False, True)}
        self._apart = _engine(self.url)  # for long sums, which must not keep the thread of the ledger waiting
        lock = select(counters.c.id).where(counters.c.id == SERVER_ID).with_for_update()
        self._lock = None if self.url.drivername == "sqlite" else lock
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                with self._engines[True].begin() as connection:
                    return create_schema(connection, time.time())
            except SQLAlchemyError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:  # by one that turns on WAL just now
                    self.close()
                    raise self._explained(error, path) from None
                time.sleep(0.05)
            except InputError as error:
                self.close()
                raise InputError(f"{self.shown}: {error}") from None

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self.url.set(drivername=self.url.get_backend_name()).render_as_string(hide_password=True)

    @contextmanager
    def transaction(self, writes: bool) -> Iterator[Connection]:
        """One transaction; one that writes has the database to itself. Raises StoreUnavailable; nothing is written."""
        with self._transaction(self._engines[writes], writes) as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction beside that of the ledger's thread, for any thread. Raises StoreUnavailable."""
        with self._transaction(self._apart, writes=False) as connection:
            yield connection

    @contextmanager
    def _transaction(self, engine: Engine, writes: bool) -> Iterator[Connection]:
        unclear = False
        try:
            with engine.connect() as connection:
                try:
                    with connection.begin() as whole:
                        if writes and self._lock is not None:
                            connection.execute(self._lock)
                        yield connection
                        unclear = writes
                        whole.commit()
                except SQLAlchemyError:
                    connection.invalidate()  # after a failed commit, it may be in a transaction still
                    raise
        except SQLAlchemyError as error:
            raise StoreUnavailable(f"{self.shown}: {_reason(error)}", unclear) from error

    def close(self) -> None:
        self._engine.dispose()
        self._apart.dispose()

    def _explained(self, error: SQLAlchemyError, path: str | None) -> Exception:
        what = f"{self.shown}: {_reason(error)}"
        unusable = path is not None and "locked" not in what
        return InputError(what) if unusable else StoreUnavailable(what)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise InputError(
            f"{url!r} is no database; write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
        ) from None
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    shown = parsed.render_as_string(hide_password=True)
    if parsed.drivername != "sqlite":
        raise InputError(f"{shown}: the ledger is kept in sqlite or postgresql, not in {parsed.drivername}")
    if parsed.host or not parsed.database or parsed.database == ":memory:":
        raise InputError(f"{shown}: name a file, as in sqlite:///leeroo.db")
    return parsed


def _engine(url: URL) -> Engine:
    """An engine whose connections are checked before each use, so that a server that was away is found again."""
    pool: dict[str, Any] = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 4, "pool_timeout": WAIT_S}
    if url.drivername == "sqlite":
        engine = create_engine(url, connect_args={"timeout": WAIT_S, "check_same_thread": False}, **pool)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        options = {name: value for name, value in POSTGRESQL.items() if name not in url.query}
        engine = create_engine(url, connect_args=options, pool_pre_ping=True, **pool)
    except ImportError:
        raise InputError("a ledger in PostgreSQL needs its driver: pip install 'leeroo[postgres]'") from None
    event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so, not where pysqlite guesses
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _prepare_postgresql(connection: Any, record: object) -> None:
    connection.execute(f"SET lock_timeout = '{WAIT_S}s'; SET statement_timeout = '{2 * WAIT_S}s'")
    connection.commit()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _reason(error: SQLAlchemyError) -> str:
    """What the database says, without the statement and its values."""
    return first_line(getattr(error, "orig", None) or error)
