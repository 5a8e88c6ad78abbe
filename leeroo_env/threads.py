"""Sets the number of torch's threads, within what systems allow."""

from __future__ import annotations

import os

import torch

from leeroo_env.errors import InputError

MAX_THREADS = max(64, os.cpu_count() or 1)


def check_threads(threads: int) -> None:
    """Raises InputError for numbers of threads that systems refuse, which would end the process."""
    if not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads {threads}: must be 1 to {MAX_THREADS}")


def set_threads(threads: int) -> None:
    """Raises InputError as `check_threads` does."""
    check_threads(threads)
    torch.set_num_threads(threads)
