"""Kills a copy of this process, as `kill -9` would, at each of the file operations of some work in turn."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator

FILES = ("open", "os.", "shutil.", "ctypes.dlsym", "tempfile.")  # audit events just before an operation on files
SAFE = ("os.fwalk", "os.walk", "os.putenv", "os.unsetenv")


def killed_everywhere(work: Callable[[], object], every: int = 1, most: int = 1000) -> Iterator[int]:
    """Does `work` in copies of this process, which are killed before their first, second, third ... file operation, or
    at one in `every` so many.

    Yields after each kill, with the number of the operation, and ends when a copy has done all of the work.
    """
    for number in range(1, most, every):
        child = os.fork()
        if child == 0:
            _work_and_die(work, number)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0, "the work itself failed"
            return
        assert os.WTERMSIG(status) == signal.SIGKILL
        yield number
    raise AssertionError(f"more than {most} operations")


def _work_and_die(work: Callable[[], object], number: int) -> None:
    left = number

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event.startswith(FILES) and event not in SAFE:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.addaudithook(hook)
        work()
        code = 0
    finally:
        os._exit(code)
