"""Ends a program on Ctrl-C in one line also where Python would not: while it imports, and while fits are running."""

from __future__ import annotations

import os
import signal
import sys
import time

BEGAN = time.perf_counter()  # the program: nothing is imported before
_message = "nothing was written"


def quit_at_once() -> None:
    """From now on Ctrl-C ends the process, for the time before it writes anything. A KeyboardInterrupt is not enough:
    libraries that are being imported turn it into other errors."""
    signal.signal(signal.SIGINT, _quit)


def _quit(signum: int, frame: object) -> None:
    os.write(2, f"interrupted; {_message}\n".encode())
    os._exit(130)


def will_say(message: str) -> None:
    """What `quit_at_once` tells the user, other than that nothing was written."""
    global _message
    _message = message


def raise_again() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, where it would end the process."""
    if signal.getsignal(signal.SIGINT) is _quit:
        from leeroo_env.cli import raise_interrupt  # only now: it takes seconds to import

        signal.signal(signal.SIGINT, raise_interrupt)


def leave(code: int) -> None:
    """Ends the program. If it was interrupted, it has saved what it could, and ends at once: fits may still be running,
    and Python can crash if it shuts down under them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if code == 130:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
