"""Runs `train.py` and kills its own process, as `kill -9` would, right after it has written so many checkpoints.

python -m tests.killed_run NUMBER OPTIONS...
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from typing import Any
from unittest.mock import patch

import train
from agents.training import callbacks


def main(number: int, arguments: list[str]) -> int:
    """What `train.main` returns, if it ends before."""
    save, calls = callbacks.save_checkpoint, itertools.count(1)

    def save_and_die(*args: Any) -> None:
        save(*args)
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with patch.object(callbacks, "save_checkpoint", save_and_die):
        return train.main(arguments)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
