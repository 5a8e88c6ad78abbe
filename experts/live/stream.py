"""Passes on a reply while it is written, and knows its cost also where the reader stops early."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from experts.live.deadline import Deadline
from experts.live.types import Chunk, Completion, UpstreamError

DRAIN_S = 30.0  # how long a reply is read on that nobody reads


class Stream:
    """The chunks of one reply, which a task of its own reads from the server.

        async for chunk in stream: ...          # raises UpstreamError
        completion = await stream.finish()      # always, also after an error or where the reader stops early

    A reader that is cancelled or breaks off does not break off the call: `finish` reads on for at most `DRAIN_S`, so
    that the server reports what it bills. It may be called more than once, and cancelled: the task goes on. What the
    reader has not taken yet is kept; a reply has a largest size, so that this is bounded.
    """

    def __init__(self, produce: Callable[[Stream], Awaitable[Completion]], tasks: set[asyncio.Task]):
        """
        Args:
            produce: makes the reply, passes its chunks to `put`, and gives the whole; raises UpstreamError.
            tasks: of the expert; holds the stream's task while it runs.
        """
        self.passed_on = False  # whether there was a chunk
        self.deadline: Deadline | None = None  # set by `produce`, which has to end then
        self.is_draining = False
        self._chunks: deque[Chunk] = deque()
        self._news = asyncio.Event()
        self._result: Completion | UpstreamError | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(produce))
        tasks.add(self._task)
        self._task.add_done_callback(tasks.discard)

    def put(self, chunk: Chunk) -> None:
        """Passes a chunk to the reader."""
        self.passed_on = True
        if not self.is_draining:
            self._chunks.append(chunk)
            self._news.set()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        while not self._chunks:
            if self._result is not None or self.is_draining:
                if isinstance(self._result, UpstreamError):
                    raise self._result
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._chunks.popleft()

    async def finish(self) -> Completion:
        """The whole reply. Raises UpstreamError."""
        if self._result is None and not self.is_draining:
            self.is_draining = True
            self._chunks.clear()
            if self.deadline is not None:
                self.deadline.limit(DRAIN_S)
        await asyncio.wait([self._task])
        if not isinstance(self._result, Completion):
            raise self._result or UpstreamError("interrupted", "the call was broken off")
        return self._result

    async def _run(self, produce: Callable[[Stream], Awaitable[Completion]]) -> None:
        try:
            self._result = await produce(self)
        except UpstreamError as error:
            self._result = error
        except asyncio.CancelledError:  # by `close`, before anything was sent
            self._result = UpstreamError("interrupted", "the call was broken off")
        except Exception as error:
            self._result = UpstreamError("unreadable", f"{type(error).__name__}: {error}", may_be_billed=True)
        self._news.set()
