"""Asks all experts their queries: servers concurrently, local models one after the other."""

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

from experts.specs import ExpertSpec, OpenAISpec
from experts.spending import NOT_ASKED
from experts.types import Answer, Expert, Query

GIVE_UP_AFTER = 24  # failed calls in a row, except those that the query itself causes:
UNANSWERABLE = re.compile(r"prompt tokens and max_tokens|the prompt has no tokens|\b(400|413|422)\b")
BATCHES_IN_FLIGHT = 2  # per server: the next calls are ready while the last ones of a batch are still running
STATUS_EVERY_S = 30.0


@dataclass
class ExpertQueue:
    """The queries that one expert is still to be asked, in batches, and its progress."""

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
        """Records the answers of a batch."""
        with self.lock:
            for answer in answers:
                if answer.error == NOT_ASKED:
                    self.capped = True
                elif answer.error:
                    self.failed += 1
                    self.failed_in_a_row += UNANSWERABLE.search(answer.error) is None
                    self.error = answer.error
                else:
                    self.done += 1
                    self.failed_in_a_row = 0
                self.usd += answer.cost_usd

    def status(self) -> str:
        """A line about calls done and failed, dollars, speed and time left."""
        finished = self.done + self.failed
        speed = finished / max(time.monotonic() - self.started, 1e-9)
        left = f"{(self.total - finished) / speed:,.0f} s left" if finished else "? s left"
        text = f"{self.done}/{self.total} done, {self.failed} failed, ${self.usd:.6f}, {speed:.1f} answers/s, {left}"
        return text + (" (spend cap reached)" if self.capped else " (given up)" if self.given_up else "")


def make_queue(expert: Expert, queries: Sequence[Query], batch_size: int, remote: bool) -> ExpertQueue:
    """A queue of batches of similar length, the longest first."""
    ordered = sorted(queries, key=lambda query: -len(query.text))
    batches: SimpleQueue[list[Query]] = SimpleQueue()
    for start in range(0, len(ordered), batch_size):
        batches.put(ordered[start : start + batch_size])
    return ExpertQueue(expert, batches, len(ordered), remote)


def queue_for(expert: Expert, spec: ExpertSpec, queries: Sequence[Query]) -> ExpertQueue:
    """The queue of an expert with batches as its spec allows."""
    if isinstance(spec, OpenAISpec):
        return make_queue(expert, queries, spec.concurrency, remote=True)
    return make_queue(expert, queries, getattr(spec, "batch_size", 1), remote=False)


def ask_all(queues: Sequence[ExpertQueue], show_progress: bool) -> None:
    """Empties all queues: servers concurrently, local models one after the other on a thread of their own."""
    stop = threading.Event()
    jobs = [[queue] for queue in queues if queue.remote for _ in range(BATCHES_IN_FLIGHT)]
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
            print("stopping: waiting for the calls in flight; press Ctrl-C again to abandon them", file=sys.stderr)
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
    except BaseException as error:  # the main thread raises it again
        errors.append(error)
        stop.set()
    finally:
        end.set()


def _wait(ends: Sequence[threading.Event], show: Callable[[], None]) -> None:
    for end in ends:  # `join` would not do: before Python 3.13 an interrupted `join` marks its thread as ended
        while not end.wait(timeout=0.2):
            show()


@contextmanager
def _progress(queues: Sequence[ExpertQueue], shown: bool) -> Iterator[Callable[[], None]]:
    """A function that updates the display on stderr: bars on a terminal, else a line from time to time."""
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
