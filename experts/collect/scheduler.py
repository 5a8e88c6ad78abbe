"""Asking all experts: servers side by side, local models one after the other, with progress on stderr."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from tqdm import tqdm

from experts.spending import NOT_ASKED
from experts.types import Answer, Expert, Query

GIVE_UP_AFTER = 24  # failed calls in a row, but for those that are the query's own fault:
UNANSWERABLE = re.compile(r"prompt tokens and max_tokens|the prompt has no tokens|\b(400|413|422)\b")
BATCHES_UNDER_WAY = 2  # per server: the next calls wait in line while the last ones of a batch are still out
STATUS_EVERY_S = 30.0


@dataclass
class ExpertQueue:
    """One expert's work: what is still to be asked, and how far it is."""

    expert: Expert
    batches: SimpleQueue[list[Query]]
    total: int
    remote: bool
    done: int = 0
    failed: int = 0
    failed_in_a_row: int = 0
    usd: float = 0.0
    capped: bool = False
    error: str = ""
    started: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def given_up(self) -> bool:
        return self.failed_in_a_row >= GIVE_UP_AFTER

    def count(self, answers: Sequence[Answer]) -> None:
        """Adds a batch that came back."""
        with self.lock:
            for answer in answers:
                of_the_query = answer.error is not None and UNANSWERABLE.search(answer.error) is not None
                if answer.error == NOT_ASKED:
                    self.capped = True
                elif answer.error:
                    self.failed += 1
                    self.failed_in_a_row += not of_the_query
                    self.error = answer.error
                else:
                    self.done += 1
                    self.failed_in_a_row = 0
                self.usd += answer.cost_usd

    def status(self) -> str:
        """Done, failed, dollars, speed and time left, for people."""
        came = self.done + self.failed
        speed = came / max(time.monotonic() - self.started, 1e-9)
        left = f"{(self.total - came) / speed:,.0f} s left" if came else "? s left"
        text = f"{self.done}/{self.total} done, {self.failed} failed, ${self.usd:.6f}, {speed:.1f} answers/s, {left}"
        return text + (" (spend cap reached)" if self.capped else " (given up)" if self.given_up else "")


def make_queue(expert: Expert, queries: Sequence[Query], batch_size: int, remote: bool) -> ExpertQueue:
    """Work for one expert in batches of like length, the longest first."""
    todo = sorted(queries, key=lambda query: -len(query.text))
    batches: SimpleQueue[list[Query]] = SimpleQueue()
    for start in range(0, len(todo), batch_size):
        batches.put(todo[start : start + batch_size])
    return ExpertQueue(expert, batches, len(todo), remote)


def ask_all(queues: Sequence[ExpertQueue], show_progress: bool) -> None:
    """Works through all queues: servers side by side, local models one after the other on a thread of their own."""
    stop = threading.Event()
    jobs = [[queue] for queue in queues if queue.remote for _ in range(BATCHES_UNDER_WAY)]
    jobs.append([queue for queue in queues if not queue.remote])
    errors: list[BaseException] = []
    ends = [threading.Event() for _ in jobs]
    with _progress(queues, show_progress) as show:
        for job, end in zip(jobs, ends, strict=True):
            threading.Thread(target=_work, args=(job, stop, errors, end), daemon=True).start()
        try:
            _wait(ends, show)
        except KeyboardInterrupt:
            stop.set()
            print("stopping: waiting for the calls under way; Ctrl-C again leaves them", file=sys.stderr)
            _wait(ends, show)
            raise
    if errors:
        raise errors[0]


def _work(
    queues: Sequence[ExpertQueue], stop: threading.Event, errors: list[BaseException], end: threading.Event
) -> None:
    try:
        for queue in queues:
            queue.started = min(queue.started, time.monotonic()) if queue.remote else time.monotonic()
            while not (stop.is_set() or queue.capped or queue.given_up or queue.batches.empty()):
                try:
                    batch = queue.batches.get_nowait()
                except Empty:
                    break
                queue.count(queue.expert.answer(batch))
    except BaseException as error:  # raised again by the main thread
        errors.append(error)
        stop.set()
    finally:
        end.set()


def _wait(ends: Sequence[threading.Event], show: Callable[[], None]) -> None:
    for end in ends:  # not `join`: a thread whose `join` was interrupted once counts as ended before Python 3.13
        while not end.wait(timeout=0.2):
            show()


@contextmanager
def _progress(queues: Sequence[ExpertQueue], shown: bool) -> Iterator[Callable[[], None]]:
    """A function that brings the display on stderr up to date: bars on a terminal, now and then a line elsewhere."""
    bars = []
    if shown and sys.stderr.isatty():
        layout = "{desc} |{bar:20}|{postfix}"
        bars = [tqdm(desc=queue.expert.name, total=queue.total, bar_format=layout, file=sys.stderr) for queue in queues]
    last = time.monotonic()

    def show() -> None:
        nonlocal last
        for queue, bar in zip(queues, bars, strict=False):
            bar.n = queue.done + queue.failed
            bar.set_postfix_str(queue.status())
        if shown and not bars and time.monotonic() - last >= STATUS_EVERY_S:
            last = time.monotonic()
            for queue in queues:
                print(f"{queue.expert.name}: {queue.status()}", file=sys.stderr)

    try:
        yield show
    finally:
        show()
        for bar in bars:
            bar.close()
