"""How every command line ends: the exit code, and one line for an error, a warning or an interruption."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

from leeroo_env.errors import InputError


def exit_code(work: Callable[[], int], interrupted: str) -> int:
    """Runs `work` and returns its exit code: 2 for bad input, 130 if interrupted.

    Errors, warnings and an interruption are one line each on stderr.

    Args:
        work: returns the exit code. Raises InputError for bad input.
        interrupted: tells the user what has been kept, or how to continue.
    """
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        return work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
