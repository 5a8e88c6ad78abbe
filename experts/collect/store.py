"""Stores answers durably, so that none that was stored is paid for again.

A part is written under a temporary name, synced and renamed, so that it is complete or absent. Answers are found by
their keys (`experts.pool.keys_for`); failed calls are stored with their error and their bill, but never found.
"""

from __future__ import annotations

import fcntl
import itertools
import shutil
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from experts.collect.parts import (
    Row,
    part_files,
    part_of,
    parts_directory,
    read_parts,
    storable,
    stored_answers,
    write_part,
)
from experts.spending import NOT_ASKED
from experts.types import Answer, Expert, PartwiseExpert, Query
from leeroo_env.errors import InputError

__all__ = ["Store", "StoredExpert", "missing_queries", "open_store", "parts_directory", "read_parts", "successes"]

MERGE_ABOVE = 256  # parts


@dataclass
class _Waiting:
    """Answers that a thread wants to store, and the error if that failed."""

    expert: str
    rows: Sequence[Row]
    label: str
    tried: bool = False
    error: BaseException | None = None


@dataclass
class Store:
    """The answers in one directory, extended by `append`. Safe to use from several threads.

    Attributes:
        found: the answers by key.
        failed: the last failed call by key, of keys without an answer.
        lost_usd: what attempts without an answer were or may have been billed, by the label of their calls.
        label: what the calls that are made from now on are for; stored with them.
    """

    directory: Path
    next_part: int = 0
    found: dict[str, Answer] = field(default_factory=dict)
    failed: dict[str, Answer] = field(default_factory=dict)
    lost_usd: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    label: str = ""

    def __post_init__(self) -> None:
        self._numbers = itertools.count(self.next_part)
        self._lock = threading.Lock()
        self._waiting = deque[_Waiting]()

    def append(self, expert: str, rows: Sequence[Row]) -> None:
        """Stores storable answers, on disk when this returns. Calls that were not made are left out.

        What other threads want to store meanwhile goes into one part, as the disk takes its time for each.
        """
        made = [row for row in rows if row[2].error != NOT_ASKED]
        if not made:
            return
        mine = _Waiting(expert, made, self.label)
        self._waiting.append(mine)
        with self._lock:
            if not mine.tried:
                self._write([self._waiting.popleft() for _ in range(len(self._waiting))])
        if mine.error is not None:
            raise mine.error

    def _write(self, group: Sequence[_Waiting]) -> None:
        """Writes one part."""
        try:
            table = pa.concat_tables([part_of(one.expert, one.rows, one.label) for one in group])
            write_part(table, self.directory / f"{next(self._numbers):06d}.parquet")
            for one in group:
                for key, _, answer in one.rows:
                    self.remember(key, answer, one.label)
        except BaseException as error:  # raised again by each thread
            for one in group:
                one.error = error
        finally:
            for one in group:
                one.tried = True

    def take_from(self, directory: Path) -> None:
        """Stores the answers of another store that this one does not have."""
        table = read_parts(directory)
        is_new = [key not in self.found for key in table["key"].to_pylist()]
        new = table.filter(pa.array(is_new, pa.bool_())).filter(pc.is_null(pc.field("error")))
        if len(new):
            with self._lock:
                write_part(new, self.directory / f"{next(self._numbers):06d}.parquet")
                for (key, answer), label in zip(stored_answers(new), new["label"].to_pylist(), strict=True):
                    self.remember(key, answer, label)

    def remember(self, key: str, answer: Answer, label: str) -> None:
        """Takes in an answer that is on disk. The first answer of a key stays."""
        self.lost_usd[label] += answer.lost_usd
        if answer.error is None:
            self.found.setdefault(key, answer)
            self.failed.pop(key, None)
        elif key not in self.found:
            self.failed[key] = answer


@contextmanager
def open_store(directory: Path) -> Iterator[Store]:
    """Opens the store in a directory, which is created if necessary, for this process alone.

    Raises:
        InputError: another process has it open, or a part cannot be read.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("a")
    except OSError as error:
        raise InputError(f"{directory}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{directory}: another process is collecting into it") from None
        for unfinished in directory.glob(".*.tmp"):
            shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
        table = read_parts(directory)
        parts = part_files(directory)
        number = int(parts[-1].stem) + 1 if parts else 0
        if len(parts) > MERGE_ABOVE:
            write_part(table, directory / f"{number:06d}.parquet")
            for part in parts:
                part.unlink()
            number += 1
        store = Store(directory, number)
        times, labels = table["time"].to_pylist(), table["label"].to_pylist()
        seen = set()  # an interrupted merge leaves rows twice
        for (key, answer), time, label in zip(stored_answers(table), times, labels, strict=True):
            if (key, time) not in seen:
                seen.add((key, time))
                store.remember(key, answer, label)
        yield store


def successes(table: pa.Table) -> dict[str, Answer]:
    """The answers by key. An interrupted merge may leave rows twice, with equal answers."""
    found: dict[str, Answer] = {}
    for key, answer in stored_answers(table):
        if answer.error is None:
            found.setdefault(key, answer)
    return found


def missing_queries(key: Callable[[Query], str], queries: Sequence[Query], found: Collection[str]) -> list[Query]:
    """The queries without a stored answer; one of those with equal prompts."""
    return list({k: query for query in queries if (k := key(query)) not in found}.values())


class StoredExpert:
    """An expert that looks up each answer in a store before asking, and stores new answers.

    Args:
        key: the key of a query's answer.
        accept_empty: whether a reply without a text counts as an answer, at its cost, instead of being asked again.
    """

    def __init__(self, expert: Expert, key: Callable[[Query], str], store: Store, accept_empty: bool = False) -> None:
        self.name = expert.name
        self.expert, self.key = expert, key
        self._store, self._accept_empty = store, accept_empty

    def found(self, query: Query) -> Answer | None:
        """The stored answer, if there is one."""
        key = self.key(query)
        if (answer := self._store.found.get(key)) is not None:
            return answer
        failed = self.failed(query)
        return self._accepted(failed) if failed and self._accept_empty and failed.is_empty else None

    def failed(self, query: Query) -> Answer | None:
        """The last failed call, if there is no answer."""
        return self._store.failed.get(self.key(query))

    def missing(self, queries: Sequence[Query]) -> list[Query]:
        """The queries without a stored answer; one of those with equal prompts."""
        return list({self.key(query): query for query in queries if self.found(query) is None}.values())

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """The stored or new answers; new ones are on disk when this returns."""
        keys = [self.key(query) for query in queries]
        known = {key: self.found(query) for key, query in zip(keys, queries, strict=True)}
        missing = {key: query for key, query in zip(keys, queries, strict=True) if known[key] is None}
        asked, new = list(missing), dict[str, Answer]()
        for part in self._in_parts(list(missing.values())) if missing else ():
            rows = [(asked[i], missing[asked[i]], storable(answer)) for i, answer in part]
            self._store.append(self.name, rows)
            new |= {key: answer for key, _, answer in rows}
        return [known[key] or self._accepted(new[key]) for key in keys]

    def _in_parts(self, queries: Sequence[Query]) -> Iterable[Sequence[tuple[int, Answer]]]:
        """The answers, each with the place of its query, in parts that can be stored before the others are there."""
        if isinstance(self.expert, PartwiseExpert):
            return self.expert.answer_in_parts(queries)
        return [list(enumerate(self.expert.answer(queries)))]

    def _accepted(self, answer: Answer) -> Answer:
        if not (self._accept_empty and answer.is_empty):
            return answer
        return replace(answer, error=None, cost_usd=answer.billed_usd, lost_usd=0.0)
