"""How every command line ends: the exit code, and one line for an error, a warning or an interruption."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from leeroo_env.errors import InputError, first_line


def exit_code(work: Callable[[], int], interrupted: str) -> int:
    """Runs `work` and returns its exit code: 2 for bad input or a file that cannot be written, 130 if interrupted.

    Errors, warnings and an interruption are one line each on stderr.

    Args:
        work: returns the exit code. Raises InputError for bad input.
        interrupted: tells the user what has been kept, or how to continue, unless the KeyboardInterrupt does.
    """
    warnings.showwarning = lambda message, *_: print(f"warning: {printable(str(message))}", file=sys.stderr)
    try:
        return work()
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:  # the disk is full, for one
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {printable(f'{where}{error.strerror or first_line(error)}')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"interrupted; {error.args[0] if error.args else interrupted}", file=sys.stderr)
        return 130


@contextmanager
def no_interrupts() -> Iterator[None]:
    """Ignores Ctrl-C meanwhile; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def printable(text: str) -> str:
    """One line that no terminal takes for commands, with anything else than letters, signs and blanks left out."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
