"""The one thread of a process that uses the store: it does all that waits in one transaction, without any delay.

While a transaction is under way, the next operations queue up, so that the more there is to do, the more of it shares
the price of a transaction (group commit).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError

from agents.server.money.operations import Operation, Settle, apply_group, writes
from agents.server.money.store import Store
from agents.server.money.types import StoreUnavailable

MOST_AT_ONCE = 500
RETRY_S = 1.0
OWN_FAULT = (DataError, IntegrityError, ProgrammingError)  # of one operation, not of the store

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class _Task:
    """An operation, or a function of the connection with a transaction of its own, and who waits for its result."""

    operation: Operation | None
    future: asyncio.Future[Any] | concurrent.futures.Future[Any] | None
    function: Callable[[Connection], Any] | None = None


class Writer:
    """Owns the store from now on. `clock` says what time it is, in Unix seconds."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time):
        self._store, self._clock = store, clock
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._unsettled: dict[str, Settle] = {}  # known costs that the store could not take, to be tried again
        self._lock, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    @property
    def unsettled(self) -> int:
        """Settlements that wait for the store to come back."""
        return len(self._unsettled)

    def submit(self, operation: Operation) -> asyncio.Future[Any]:
        """Queues an operation, which is done whether or not anyone waits for the future."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put(_Task(operation, future))
        return future

    def submit_unheard(self, operation: Operation) -> None:
        """Queues an operation whose result nobody waits for."""
        self._put(_Task(operation, None))

    def do(self, operation: Operation) -> Any:
        """Does an operation and waits; not for the thread of an event loop."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._put(_Task(operation, future))
        return future.result()

    def call(self, function: Callable[[Connection], T]) -> T:
        """The result of a function of the connection, in a transaction of its own; not for an event loop's thread."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._put(_Task(None, future, function))
        return future.result()

    def close(self) -> None:
        """Does what is queued, then ends."""
        with self._lock:
            was_closed, self._closed = self._closed, True
            if not was_closed:
                self._queue.put(None)
        if not was_closed:
            self._thread.join()
            if self._unsettled:
                log.error("%d costs could not be settled: their reservations will expire", len(self._unsettled))
            self._store.close()

    def _put(self, task: _Task) -> None:
        with self._lock:  # nothing may be queued behind the end
            if self._closed:
                raise StoreUnavailable("the ledger is closed")
            self._queue.put(task)

    def _work(self) -> None:
        closing = False
        while not closing:
            tasks = self._next_tasks()
            closing = None in tasks
            operations = [task for task in tasks if task is not None and task.operation is not None]
            again = list(islice(self._unsettled.values(), MOST_AT_ONCE))
            operations = [*(_Task(one, None) for one in again), *operations]
            if operations:
                self._do_group(operations)
            for task in tasks:
                if task is not None and task.function is not None:
                    self._do_function(task)

    def _next_tasks(self) -> list[_Task | None]:
        """All that waits; waits itself if there is nothing."""
        tasks: list[_Task | None] = []
        with contextlib.suppress(queue.Empty):
            tasks.append(self._queue.get(timeout=RETRY_S if self._unsettled else None))
            while len(tasks) < MOST_AT_ONCE:
                tasks.append(self._queue.get_nowait())
        return tasks

    def _do_group(self, tasks: list[_Task]) -> None:
        operations = [task.operation for task in tasks if task.operation is not None]
        try:
            with self._store.transaction(any(map(writes, operations))) as connection:
                results: list[Any] = apply_group(connection, operations, self._clock())
            for operation in operations:
                if isinstance(operation, Settle):
                    self._unsettled.pop(operation.reservation_id, None)
        except Exception as error:
            if len(tasks) > 1 and not _is_outage(error):  # the fault of one must not be the others' loss
                for task in tasks:
                    self._do_group([task])
                return
            results = [self._failed(operation, error) for operation in operations]
        _deliver(list(zip(tasks, results, strict=True)))

    def _do_function(self, task: _Task) -> None:
        assert task.function is not None
        try:
            with self._store.transaction(writes=True) as connection:
                result = task.function(connection)
        except Exception as error:
            result = error
        _deliver([(task, result)])

    def _failed(self, operation: Operation, error: Exception) -> Any:
        """What an operation returns that could not be done. A cost that is known is kept, to be settled later."""
        if isinstance(operation, Settle) and _is_outage(error):
            return self._unsettled.setdefault(operation.reservation_id, operation) is operation
        return error


def is_own_fault(error: StoreUnavailable) -> bool:
    """Whether what was asked cannot be done, rather than nothing."""
    return isinstance(error.__cause__, OWN_FAULT)


def _is_outage(error: Exception) -> bool:
    return isinstance(error, StoreUnavailable) and not is_own_fault(error)


def _deliver(results: list[tuple[_Task, Any]]) -> None:
    """Gives results to those who wait, with one call into each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for task, result in results:
        if isinstance(task.future, asyncio.Future):
            by_loop.setdefault(task.future.get_loop(), []).append((task.future, result))
        elif task.future is not None:
            _set(task.future, result)
    for loop, pairs in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, so that nobody waits
            loop.call_soon_threadsafe(_set_all, pairs)


def _set_all(pairs: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in pairs:
        if not future.done():
            _set(future, result)


def _set(future: asyncio.Future[Any] | concurrent.futures.Future[Any], result: Any) -> None:
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
