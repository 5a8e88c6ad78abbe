"""Keeps copies of pool and runs, so that all workers of a server have the same whatever becomes of the files.

A directory that the workers share has a directory for each version, and small files: `current` names the version in
force, `wanted` and `handled` count requests for another one, `problem` says why the last one was refused, and
`workers` has a file for each process with the version that it uses.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydantic

from agents.server.config import ServerConfig
from experts.pool import load_pool
from experts.specs import Pool
from leeroo_env.errors import InputError, first_line
from leeroo_env.files import read_directory, write_text

FIRST, SECOND, POOL, POLICIES = "first", "second", "pool.yaml", "policies.json"
REPORTS = ("evaluation.json", "config.yaml")  # of a run, from which budget and comparison are taken
PRIVATE = 0o700


class Problem(pydantic.BaseModel):
    """Why a version was refused, and when, in Unix seconds."""

    at: float
    message: str


@dataclass(frozen=True)
class Versions:
    """All of them; for any thread and process."""

    directory: Path

    def begin(self, config: ServerConfig) -> int:
        """Makes the first version. Raises InputError."""
        (self.directory / "workers").mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        number = self.add(config)
        self.put_in_force(number)
        return number

    def add(self, config: ServerConfig) -> int:
        """Copies pool and runs as they are now; returns the number of the new version. Raises InputError."""
        number = 1 + max((int(path.name) for path in self.directory.iterdir() if path.name.isdecimal()), default=0)
        copy = self.directory / str(number)
        copy.mkdir(mode=PRIVATE)
        try:
            _copy(config.pool, copy / POOL)
            for name, run in zip((FIRST, SECOND), config.runs, strict=False):
                _copy_run(run, copy / name)
            write_text(copy / POLICIES, json.dumps(_names(config.runs)))
        except BaseException:
            self.remove(number)
            raise
        return number

    def remove(self, number: int) -> None:
        shutil.rmtree(self.directory / str(number), ignore_errors=True)

    def put_in_force(self, number: int) -> None:
        """Makes workers use a version from now on; of the others the last is kept, which some use still."""
        write_text(self.directory / "current", str(number))
        (self.directory / "problem").unlink(missing_ok=True)
        for path in self.directory.iterdir():
            if path.name.isdecimal() and int(path.name) < number - 1:
                self.remove(int(path.name))

    @property
    def current(self) -> int:
        """The number of the version in force."""
        return int(self._read("current"))

    def policies(self, number: int) -> list[str]:
        """What the policies of a version are called."""
        names: list[str] = json.loads((self.directory / str(number) / POLICIES).read_text())
        return names

    def pool(self, number: int, path: Path) -> Pool:
        """The experts of a version, copied from the file at `path`. Raises InputError."""
        copy = self.directory / str(number) / POOL
        try:
            return load_pool(path, copy)
        except InputError as error:
            raise InputError(str(error).replace(str(copy), str(path))) from None

    def run(self, number: int, name: str) -> Path:
        """The copy of a run; `name` is FIRST or SECOND."""
        return self.directory / str(number) / name

    # ---------------------------------------------------------------------------------------------- between processes

    def ask(self) -> None:
        """Asks the workers for a new version."""
        write_text(self.directory / "wanted", str(time.time_ns()))

    def is_wanted(self) -> bool:
        """Whether somebody asked for a version since the last `handle`."""
        return self._read("wanted") != self._read("handled")

    def handle(self) -> None:
        """Notes that what was asked for until now is being done."""
        write_text(self.directory / "handled", self._read("wanted"))

    def refuse(self, message: str) -> None:
        """Notes why no new version is in force."""
        write_text(self.directory / "problem", Problem(at=time.time(), message=message).model_dump_json())

    @property
    def problem(self) -> Problem | None:
        text = self._read("problem")
        return Problem.model_validate_json(text) if text else None

    def use(self, number: int | None) -> None:
        """Notes which version this process uses; None: it ends."""
        own = self.directory / "workers" / str(os.getpid())
        if number is None:
            own.unlink(missing_ok=True)
        else:
            write_text(own, str(number))

    def used(self) -> list[int]:
        """The versions that living workers use, one for each."""
        found = []
        for own in (self.directory / "workers").iterdir():
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(own.name), 0)
                found.append(int(own.read_text()))
        return found

    @contextlib.contextmanager
    def lock(self, waits: bool = True) -> Iterator[bool]:
        """Lets one process at a time make a version; False where another one does and this one does not wait."""
        with (self.directory / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True  # it ends when the file is closed

    def _read(self, name: str) -> str:
        try:
            return (self.directory / name).read_text()
        except FileNotFoundError:
            return ""


def _names(runs: list[Path]) -> list[str]:
    """What policies are called: the last parts of their runs' real paths that tell them apart."""
    real = [run.resolve() for run in runs]
    names = [path.name for path in real]
    return names if len(set(names)) == len(names) else [str(path) for path in real]


def _copy_run(run: Path, copy: Path) -> None:
    """Copies what a policy needs of a run. Raises InputError."""
    policy = run / "policy"
    if not policy.is_dir():
        raise InputError(f"{run}: holds no policy/; is it the directory of a training run?")

    def copied() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(policy, copy / "policy")

    try:
        read_directory(policy, copied)
    except OSError as error:  # shutil.Error too
        raise InputError(f"{policy}: {first_line(error)}") from None
    for name in REPORTS:
        if (run / name).is_file():
            _copy(run / name, copy / name)


def _copy(file: Path, copy: Path) -> None:
    try:
        shutil.copyfile(file, copy)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
