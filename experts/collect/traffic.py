"""Keeps questions, answers and ratings of live traffic as lines of JSON, which only grow, one file a writer and day."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydantic

from experts.types import Answer
from leeroo_env.errors import InputError


class KeptAnswer(pydantic.BaseModel, frozen=True, extra="forbid"):
    """An answer to a question that the collector could have asked.

    Attributes:
        at: Unix seconds.
        decision: the request that it was made for.
        key: under which the collector finds it, see `experts.pool.keys_for`.
        expert: who gave it.
        text: the question.
        domain: of the question, if the client named one.
        answer: itself.
    """

    at: float
    decision: str
    key: str
    expert: str
    text: str
    domain: str
    answer: Answer


class Rating(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What a user thinks of the answer that an expert gave in a decision, from 0 for useless to 1 for right."""

    at: float
    decision: str
    expert: str
    score: float = pydantic.Field(ge=0, le=1)


Line = KeptAnswer | Rating
_LINE: pydantic.TypeAdapter[Line] = pydantic.TypeAdapter(Line)


@dataclass
class TrafficLog:
    """The files of one writer. Only its owner may read them. Raises InputError where the directory cannot be written.

    Attributes:
        directory: created if necessary; other writers may use it at the same time.
        writer: sets its files apart from theirs.
    """

    directory: Path
    writer: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    _is_torn: bool = False

    def __post_init__(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = self.directory / f".{self.writer}.tmp"
            probe.touch(0o600)
            probe.unlink()
        except OSError as error:
            raise InputError(f"{self.directory}: cannot be written: {error.strerror}") from None

    def append(self, lines: Iterable[Line]) -> None:
        """Appends lines, which outlive the process when this returns. Raises OSError; the lines may be lost then."""
        data = b"".join(line.model_dump_json().encode() + b"\n" for line in lines)
        data = b"\n" + data if self._is_torn else data
        path = self.directory / f"{time.strftime('%Y-%m-%d', time.gmtime())}-{self.writer}.jsonl"
        self._is_torn = True
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)
        self._is_torn = False


def read_traffic(directory: Path) -> Iterator[Line | None]:
    """All lines of all writers, those of each in their order; None for one that cannot be read.

    A last line without an end is being written, or was when its writer was killed, and is left out.

    Raises:
        InputError: there is no such directory, or a file cannot be read.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; leeroo serve --keep-texts {directory} makes it")
    for path in sorted(directory.glob("*.jsonl")):
        try:
            with path.open("rb") as stream:
                for line in stream:
                    if line.endswith(b"\n") and line.strip():
                        yield _parsed(line)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _parsed(line: bytes) -> Line | None:
    try:
        return _LINE.validate_json(line)
    except pydantic.ValidationError:
        return None
