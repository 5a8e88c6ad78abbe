"""How every command line ends: the exit code, and one line for an error, a warning or an interruption."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from leeroo_env.errors import InputError, first_line

_received: list[int] = []  # interruptions since the program began


def raise_interrupt(signum: int, frame: object) -> None:
    """Handles Ctrl-C: as Python does by default, and remembers it."""
    _received.append(signum)
    raise KeyboardInterrupt


def is_interruption(error: BaseException) -> bool:
    """Whether an error comes from Ctrl-C: some libraries turn a KeyboardInterrupt into errors of their own."""
    return isinstance(error, KeyboardInterrupt) or (bool(_received) and isinstance(error, Exception))


def exit_code(work: Callable[[], int], interrupted: str) -> int:
    """Runs `work` and returns its exit code: 2 for bad input or a file that cannot be written, 130 if interrupted.

    Errors, warnings and an interruption are one line each on stderr.

    Args:
        work: returns the exit code. Raises InputError for bad input.
        interrupted: tells the user what has been kept, or how to continue, unless the KeyboardInterrupt does.
    """
    warnings.showwarning = lambda message, *_: print(f"warning: {printable(str(message))}", file=sys.stderr)
    _received.clear()
    try:
        with _handled(raise_interrupt if signal.getsignal(signal.SIGINT) is signal.default_int_handler else None):
            return work()
    except BaseException as error:
        if is_interruption(error):
            told = isinstance(error, KeyboardInterrupt) and error.args
            print(f"interrupted; {error.args[0] if told else interrupted}", file=sys.stderr)
            return 130
        if isinstance(error, InputError):
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return 2
        if isinstance(error, OSError):  # the disk is full, for one
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {printable(f'{where}{error.strerror or first_line(error)}')}", file=sys.stderr)
            return 2
        raise


@contextmanager
def no_interrupts() -> Iterator[None]:
    """Ignores Ctrl-C meanwhile."""
    with _handled(signal.SIG_IGN):
        yield


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    """Lets `handler` have Ctrl-C meanwhile; None, or another thread than the main one, changes nothing."""
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def printable(text: str) -> str:
    """One line that no terminal takes for commands, with anything else than letters, signs and blanks left out."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
