"""Ends what a task does at a time that may be moved, with one timer however often it is moved."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any


class Deadline:
    """A context in which the current task is cancelled at a time; it then raises TimeoutError.

    Moving the time forward costs nothing: the timer looks when it fires. (asyncio.timeout makes a new one, and needs
    Python 3.11.)
    """

    def __init__(self, seconds: float, most_s: float):
        """
        Args:
            seconds: how long the context lasts unless it is moved.
            most_s: how long it lasts at most.
        """
        self._loop = asyncio.get_running_loop()
        self._latest = self._loop.time() + most_s
        self._at = min(self._loop.time() + seconds, self._latest)
        self.expired = False

    def __enter__(self) -> Deadline:
        task = asyncio.current_task()
        assert task is not None
        self._task: Any = task
        self._cancelling = task.cancelling() if hasattr(task, "cancelling") else 0
        self._timer = self._loop.call_at(self._at, self._check)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._timer.cancel()
        if not self.expired or kind is not asyncio.CancelledError:
            return
        if hasattr(self._task, "uncancel") and self._task.uncancel() > self._cancelling:
            return  # somebody else cancelled it as well
        raise TimeoutError from error

    def move(self, seconds: float) -> None:
        """The context ends so many seconds from now, or at its latest."""
        self._at = min(self._loop.time() + seconds, self._latest)
        if self._at < self._timer.when() and not self.expired:
            self._timer.cancel()
            self._timer = self._loop.call_at(self._at, self._check)

    def limit(self, seconds: float) -> None:
        """The context ends so many seconds from now at the latest."""
        self._latest = min(self._latest, self._loop.time() + seconds)
        self.move(self._at - self._loop.time())

    def _check(self) -> None:
        if self._loop.time() < self._at:
            self._timer = self._loop.call_at(self._at, self._check)
        else:
            self.expired = True
            self._task.cancel()
