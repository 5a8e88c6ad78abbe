"""Puts files and directories in place whole or not at all, whenever the process is killed and whoever else writes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from leeroo_env.errors import InputError

LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.(tmp|old)")  # what a killed process can leave of NAME
RENAME_EXCHANGE = 2

_cleaned: set[Path] = set()  # directories from which this process has removed leftovers
_locked: dict[str, int] = {}  # directories locked by this process, and the descriptors that lock them


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file of the same name, which then takes the place of `path`.

    Raises:
        OSError: it cannot be written.
    """
    with temporary_directory(path) as directory:
        write(directory / path.name)
        os.replace(directory / path.name, path)


@contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """A new directory beside `path`, which is locked while it is in use and removed when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent not in _cleaned and not LEFTOVER.fullmatch(path.parent.name):
        _cleaned.add(path.parent)
        remove_leftovers(path.parent)
    directory, lock = _locked_directory(path)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _locked_directory(path: Path) -> tuple[Path, int]:
    """A new directory beside `path`, and the open descriptor that locks it."""
    while True:
        directory = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        directory.mkdir()
        with suppress(FileNotFoundError):  # taken for a leftover before it was locked
            lock = os.open(directory, os.O_RDONLY)
            if _lock(lock) is not False and directory.exists():
                return directory, lock
            os.close(lock)


def _lock(descriptor: int) -> bool | None:
    """Locks an open directory. False where another process has it; None where the file system knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove_leftovers(directory: Path) -> None:
    """Removes what killed processes have left in a directory, but not what is in use or the only copy of anything."""
    with suppress(OSError):
        for path in directory.iterdir():
            match = LEFTOVER.fullmatch(path.name)
            if match and (path.suffix == ".tmp" or (directory / match["name"]).exists()):
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if _lock(descriptor):
                shutil.rmtree(path)
        finally:
            os.close(descriptor)


def put_in_place(new: Path, path: Path) -> None:
    """The directory `new` takes the place of `path` in one step; what was there before is then at `new`, or removed.

    Raises:
        OSError: it cannot be done.
    """
    asides = []
    while True:
        try:
            os.rename(new, path)  # where there is none yet, or an empty one
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _exchange(new, path):
            break
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.old")
        with suppress(FileNotFoundError):
            os.rename(path, aside)  # `recover` undoes it, should this process be killed now
            asides.append(aside)
    for aside in asides:
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two directories in one step. False where the system cannot, or one of them has gone."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here = -100  # AT_FDCWD
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), RENAME_EXCHANGE) == 0


def recover(path: Path) -> None:
    """Brings a directory back that was moved aside by a process killed before the new one was in place."""
    with suppress(OSError):
        if not path.exists():
            matches = ((other, LEFTOVER.fullmatch(other.name)) for other in path.parent.iterdir())
            aside = [other for other, m in matches if m and m["name"] == path.name and other.suffix == ".old"]
            if aside:
                os.rename(max(aside, key=lambda other: other.stat().st_mtime), path)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps other processes from working on a directory. Within this process it may be entered again.

    Raises:
        InputError: another process works on it.
    """
    name = os.path.realpath(directory)
    if name in _locked:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    if _lock(descriptor) is False:
        os.close(descriptor)
        raise InputError(f"{directory}: another process is working on it")
    _locked[name] = descriptor
    try:
        remove_leftovers(directory)
        yield
    finally:
        if name in _locked:  # not in a child
            os.close(_locked.pop(name))


def _leave_locks() -> None:
    """In a child that was forked, which would else keep them when this process is killed."""
    while _locked:
        os.close(_locked.popitem()[1])


os.register_at_fork(after_in_child=_leave_locks)
