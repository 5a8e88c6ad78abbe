"""Leaves failing experts alone: a circuit breaker (Nygard, Release It!, 2007) for each expert of an orchestrator."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experts.collect.scheduler import UNANSWERABLE
from experts.types import Answer

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
MAX_BAD_REQUESTS = 3  # in a row: one may be the fault of its query, such as a prompt that is too long
NOT_ASKED = "not asked"  # how errors of calls begin that were not made


@dataclass
class _Failures:
    """The failures of one expert since its last success, the pause that they led to, and when it is over."""

    bad_requests: int = 0
    pause_s: float = 0.0
    until: float = 0.0


class CircuitBreaker:
    """Knows which experts failed lately. Safe to use from several threads.

    An expert that fails is left alone for a pause. Then one call tries it (the circuit is half open): if that fails as
    well, the next pause is twice as long; a success ends all of it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: defaultdict[str, _Failures] = defaultdict(_Failures)
        self._lock = threading.Lock()

    def is_open(self, name: str) -> bool:
        """Whether the expert is to be left alone now."""
        with self._lock:
            return name in self._failures and self._clock() < self._failures[name].until

    def admit(self, name: str) -> bool:
        """Whether the expert may be asked now. After a pause one caller may, whose call counts as failed until it
        succeeds: the others are refused for the next, longer pause."""
        with self._lock:
            now, failures = self._clock(), self._failures.get(name)
            if failures is None or failures.pause_s == 0:
                return True
            if now < failures.until:
                return False
            failures.pause_s = min(2 * failures.pause_s, LONGEST_PAUSE_S)
            failures.until = now + failures.pause_s
            return True

    def record(self, name: str, answers: Sequence[Answer]) -> None:
        """Takes note of what calls to an expert brought. An empty reply is a sign of life, too."""
        made = [answer for answer in answers if not (answer.error or "").startswith(NOT_ASKED)]
        with self._lock:
            now = self._clock()
            if any(answer.error is None or answer.is_empty for answer in made):
                self._failures.pop(name, None)
            elif made and now >= self._failures[name].until:  # else the pause has begun already
                failures = self._failures[name]
                if all(UNANSWERABLE.search(answer.error or "") for answer in made):
                    failures.bad_requests += len(made)
                    if failures.bad_requests < MAX_BAD_REQUESTS:
                        return
                longest_s = max(FIRST_PAUSE_S, *(answer.latency_s for answer in made))
                failures.pause_s = min(longest_s, LONGEST_PAUSE_S)
                failures.until = now + failures.pause_s
