"""Leaves failing experts alone: a circuit breaker (Nygard, Release It!, 2007) for each model of an orchestrator."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from experts.collect.scheduler import UNANSWERABLE
from experts.types import Answer

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
MAX_BAD_REQUESTS = 3  # in a row: one may be the fault of its query, such as a prompt that is too long
NOT_ASKED = "not asked"  # how errors of calls begin that were not made


@dataclass
class _Failures:
    """The failures since the last success, the pause that they led to, when it is over, and whether one call tries."""

    bad_requests: int = 0
    pause_s: float = 0.0
    until: float = 0.0
    is_tried: bool = False


class CircuitBreaker:
    """Knows which experts failed lately. Safe to use from several threads.

    An expert that fails is left alone for a pause. Then one call tries it (the circuit is half open): if that fails as
    well, the next pause is twice as long; a success ends all of it.

    Experts are known by name and `entry`, the name that variants of one model share (None: the expert's own). A server
    that is down is down for all of them; one that refuses requests may refuse a variant's settings, and this one alone
    is left alone.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: defaultdict[tuple[str, str], _Failures] = defaultdict(_Failures)
        self._lock = threading.Lock()

    def copy(self, keeps: Callable[[str, str], bool]) -> CircuitBreaker:
        """Another one, which knows of what `keeps` the same: it gets "model" and the name of an entry, or "expert" and
        the name of an expert."""
        other = CircuitBreaker(self._clock)
        with self._lock:
            for key, failures in self._failures.items():
                if keeps(*key):
                    other._failures[key] = replace(failures)
        return other

    def is_open(self, name: str, entry: str | None = None) -> bool:
        """Whether the expert is to be left alone now."""
        with self._lock:
            return any(self._clock() < failures.until for failures in self._known(name, entry))

    def admit(self, name: str, entry: str | None = None) -> bool:
        """Whether the expert may be asked now. After a pause one caller may, whose call counts as failed until it
        succeeds: the others are refused for the next, longer pause."""
        with self._lock:
            now, known = self._clock(), self._known(name, entry)
            if any(now < failures.until for failures in known):
                return False
            for failures in known:
                if failures.pause_s > 0:
                    failures.is_tried = True
                    failures.pause_s = min(2 * failures.pause_s, LONGEST_PAUSE_S)
                    failures.until = now + failures.pause_s
            return True

    def release(self, name: str, entry: str | None = None) -> None:
        """Takes back that the expert was admitted, since it is not asked: the next caller may try it."""
        with self._lock:
            for failures in self._known(name, entry):
                if failures.is_tried:
                    failures.until, failures.is_tried = self._clock(), False

    def _known(self, name: str, entry: str | None) -> list[_Failures]:
        return [self._failures[key] for key in _keys(name, entry) if key in self._failures]

    def record(self, name: str, answers: Sequence[Answer], entry: str | None = None) -> None:
        """Takes note of what calls to an expert brought. An empty reply is a sign of life, too."""
        made = [answer for answer in answers if not (answer.error or "").startswith(NOT_ASKED)]
        with self._lock:
            now = self._clock()
            if any(answer.error is None or answer.is_empty for answer in made):
                for key in _keys(name, entry):
                    self._failures.pop(key, None)
                return
            if not made:
                return
            refused = all(UNANSWERABLE.search(answer.error or "") for answer in made)
            failures = self._failures[_keys(name, entry)[refused]]
            if now >= failures.until:  # else the pause has begun already
                if refused:
                    failures.bad_requests += len(made)
                    if failures.bad_requests < MAX_BAD_REQUESTS:
                        return
                longest_s = max(FIRST_PAUSE_S, *(answer.latency_s for answer in made))
                failures.pause_s = min(longest_s, LONGEST_PAUSE_S)
                failures.until = now + failures.pause_s


def _keys(name: str, entry: str | None) -> tuple[tuple[str, str], tuple[str, str]]:
    """What failures are counted by: those of a model, and requests of an expert that were refused."""
    return ("model", entry or name), ("expert", name)
