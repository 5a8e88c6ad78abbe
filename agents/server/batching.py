"""Runs work in batches of whatever has come in while the last batch ran, in a thread of its own."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Collects items from an event loop without a fixed delay. Where a batch fails, its items are worked on one by one,
    so that the fault of one is not the others' loss."""

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R]], most: int = 64, name: str = "batcher"):
        """Args: the work on at most `most` items at once, which gives one result for each."""
        self._work, self._most = work, most
        self._waiting: queue.SimpleQueue[tuple[T, Future[R]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def submit(self, item: T) -> R:
        """The result of one item."""
        future: Future[R] = Future()
        self._waiting.put((item, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Ends the thread after what is waiting."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, closing = [first], False
            while len(batch) < self._most and not closing:
                try:
                    item = self._waiting.get_nowait()
                except queue.Empty:
                    break
                closing = item is None
                batch += [] if item is None else [item]
            batch = [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]
            self._do(batch)
            if closing:
                return

    def _do(self, batch: list[tuple[T, Future[R]]]) -> None:
        try:
            results = self._work([item for item, _ in batch]) if batch else []
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)
        except BaseException as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:
                if not one[1].done():
                    self._do([one])
