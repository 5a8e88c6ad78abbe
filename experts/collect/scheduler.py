"""Asks all experts their queries: servers concurrently, local models one after the other."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from tqdm import tqdm

from experts.collect.store import StoredExpert
from experts.specs import ExpertSpec, OpenAISpec
from experts.spending import NOT_ASKED
from experts.types import Answer, Expert, Query

GIVE_UP_AT_FIRST = 8  # failed calls, of any kind, of an expert that has not answered yet
GIVE_UP_AFTER = 24  # later: failed calls in a row, except empty replies and errors that the query itself causes:
UNANSWERABLE = re.compile(r"prompt tokens and max_tokens|the prompt has no tokens|Error code: (400|413|422)\b")
BATCHES_IN_FLIGHT = 2  # per server: the next calls are ready while the last ones of a batch are still running
STATUS_EVERY_S = 30.0


@dataclass
class ExpertQueue:
    """The queries that one expert is still to be asked, in batches, and its progress.

    The first batch is asked alone: an expert that cannot answer at all is found out by a few calls.
    """

    expert: Expert
    batches: SimpleQueue[list[Query]]
    total: int
    remote: bool
    lanes: int = 1  # batches at the same time
    least_usd: float = 0.0  # the most that one attempt of the cheapest of these calls can cost
    worst_usd: float = 0.0  # the most that all of them can cost, with every attempt
    done: int = 0
    failed: int = 0
    failed_in_a_row: int = 0
    usd: float = 0.0
    capped: bool = False
    error: str = ""
    begun: bool = False
    started: float = field(default_factory=time.monotonic)
    tried: threading.Event = field(default_factory=threading.Event)  # the first batch has returned
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def given_up(self) -> bool:
        return self.failed_in_a_row >= GIVE_UP_AFTER or (not self.done and self.failed >= GIVE_UP_AT_FIRST)

    def count(self, answers: Sequence[Answer]) -> None:
        """Records the answers of a batch."""
        with self.lock:
            for answer in answers:
                if answer.error == NOT_ASKED:
                    self.capped = True
                elif answer.error:
                    self.failed += 1
                    self.failed_in_a_row += not (answer.is_empty or UNANSWERABLE.search(answer.error))
                    self.error = answer.error
                else:
                    self.done += 1
                    self.failed_in_a_row = 0
                self.usd += answer.billed_usd
        self.tried.set()

    def status(self) -> str:
        """A line about calls done and failed, dollars, speed and time left."""
        finished = self.done + self.failed
        speed = finished / max(time.monotonic() - self.started, 1e-9)
        left = f"{(self.total - finished) / speed:,.0f} s left" if finished else "? s left"
        text = f"{self.done}/{self.total} done, {self.failed} failed, ${self.usd:.6f}, {speed:.1f} answers/s, {left}"
        return text + (" (spend cap reached)" if self.capped else " (given up)" if self.given_up else "")


def make_queue(
    expert: Expert,
    queries: Sequence[Query],
    batch_size: int,
    remote: bool,
    failed_before: Callable[[Query], bool] = lambda query: False,
) -> ExpertQueue:
    """A queue of batches of similar length, the longest first; the first batch has queries of all lengths.

    Args:
        failed_before: whether a query's call failed in an earlier run; these are asked last, so that none waits for
            them if the expert is given up.
    """
    ordered = sorted(queries, key=lambda query: (failed_before(query), -len(query.text)))
    fresh = sum(not failed_before(query) for query in ordered) or len(ordered)
    first = {fresh - 1 - i for i in spread(fresh, min(GIVE_UP_AT_FIRST, batch_size))}
    rest = [query for i, query in enumerate(ordered) if i not in first]
    batches: SimpleQueue[list[Query]] = SimpleQueue()
    if first:
        batches.put([ordered[i] for i in sorted(first)])
    for start in range(0, len(rest), batch_size):
        batches.put(rest[start : start + batch_size])
    return ExpertQueue(expert, batches, len(ordered), remote, BATCHES_IN_FLIGHT if remote else 1)


def spread(n: int, most: int) -> list[int]:
    """At most `most` of the indices 0 to n - 1, from the first to the last, as evenly as possible."""
    count = min(n, most)
    return [round(i * (n - 1) / max(count - 1, 1)) for i in range(count)]


def queue_for(expert: StoredExpert, spec: ExpertSpec, queries: Sequence[Query]) -> ExpertQueue:
    """The queue of an expert with batches as its spec allows."""
    remote = isinstance(spec, OpenAISpec)
    batch_size = spec.concurrency if isinstance(spec, OpenAISpec) else getattr(spec, "batch_size", 1)
    batch_size = getattr(expert.expert, "batch_size", batch_size)  # on a cluster
    queue = make_queue(expert, queries, batch_size, remote, lambda query: expert.failed(query) is not None)
    queue.lanes = getattr(expert.expert, "lanes", queue.lanes)
    worst_usd = [spec.worst_usd(query) for query in queries]
    queue.least_usd, queue.worst_usd = min(worst_usd, default=0.0), spec.attempts * sum(worst_usd)
    return queue


def ask_all(queues: Sequence[ExpertQueue], show_progress: bool) -> None:
    """Empties all queues: servers concurrently, local models one after the other on threads of their own."""
    stop = threading.Event()
    jobs = [[queue] for queue in queues if queue.remote for _ in range(queue.lanes)]
    local = [queue for queue in queues if not queue.remote]
    jobs += [local] * max((queue.lanes for queue in local), default=0)
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
            queue.started = queue.started if queue.remote or queue.begun else time.monotonic()
            while not stop.is_set() and (batch := _next_batch(queue, stop)):
                queue.count(queue.expert.answer(batch))
    except BaseException as error:  # the main thread raises it again
        errors.append(error)
        stop.set()
    finally:
        end.set()


def _next_batch(queue: ExpertQueue, stop: threading.Event) -> list[Query]:
    """The queries to ask next; none if all were asked, the money is spent or the expert is given up."""
    with queue.lock:
        is_first = not queue.begun
        queue.begun = True
    while not (is_first or stop.is_set() or queue.tried.wait(0.05)):
        pass  # the first batch is still asked
    with contextlib.suppress(Empty):
        if not (stop.is_set() or queue.capped or queue.given_up):
            return queue.batches.get_nowait()
    queue.tried.set()
    return []


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
