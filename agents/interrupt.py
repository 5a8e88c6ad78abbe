"""Ends a program on Ctrl-C in one line also where Python would not: while it imports, and while fits are running."""

from __future__ import annotations

import os
import signal
import sys
import threading

FIT = "leeroo-fit"  # the name of threads that an interruption does not wait for


def quit_at_once() -> None:
    """From now on Ctrl-C ends the process: for the seconds in which libraries are imported and nothing is written."""

    def leave_now(signum: int, frame: object) -> None:
        os.write(2, b"interrupted; nothing was written\n")
        os._exit(130)

    signal.signal(signal.SIGINT, leave_now)


def raise_again() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, as it does by default."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def leave(code: int) -> None:
    """Ends the program; at once where fits are still running, since Python can crash if it shuts down under them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if any(thread.name == FIT for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
