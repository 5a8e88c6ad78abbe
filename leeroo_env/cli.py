"""What the command lines have in common."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

from leeroo_env.errors import InputError


def exit_code(work: Callable[[], int], interrupted: str) -> int:
    """What `work` returns; 2 for bad input, and 130 with the words `interrupted` where it is. All that is told of
    either, and of warnings, is a line on stderr each."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        return work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
