"""Runs the event loop of all calls to servers, on a thread of its own, so that experts answer to any thread."""

from __future__ import annotations

import asyncio
import functools
import threading

_starting = threading.Lock()


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop, which runs as long as the program."""
    with _starting:  # the cache alone would let two threads start two loops
        return _started_loop()


@functools.cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="calls", daemon=True).start()
    return loop
