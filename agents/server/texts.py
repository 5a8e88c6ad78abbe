"""Keeps the questions and answers of a server for later training, if it is told to; no request waits for that.

A thread of its own finds out what the collector could have asked, and appends it to files, many at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from agents.server import metrics
from agents.serving.asking import as_answer
from experts.collect.parts import storable
from experts.collect.traffic import KeptAnswer, Line, Rating, TrafficLog
from experts.live import ChatRequest, Completion, LiveExpert
from experts.live.question import NoQuestion, question_of
from experts.pool import keys_for
from experts.types import Query

FLUSH_S = 0.2
END_S = 5.0  # that a disk which hangs may take at the end
MOST_WAITING = 2_000  # while the disk does not keep up
SILENT_S = 60.0  # between two complaints

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Call:
    at: float
    query: Query
    expert: LiveExpert
    chat: ChatRequest
    completion: Completion
    stream: bool


class Texts:
    """What one worker keeps. Raises InputError where its directory cannot be written."""

    def __init__(self, directory: Path):
        self._log = TrafficLog(directory)
        self._waiting: deque[_Call | Rating] = deque()
        self._keys: WeakKeyDictionary[LiveExpert, Callable[[Query], str]] = WeakKeyDictionary()
        self._ending = threading.Event()
        self._complained_at = -SILENT_S
        self._thread = threading.Thread(target=self._work, name="texts", daemon=True)
        self._thread.start()

    def add(self, query: Query, expert: LiveExpert, chat: ChatRequest, completion: Completion, stream: bool) -> None:
        """Keeps an answer, if it is one to a question of a single turn.

        Args:
            query: its id is that of the decision.
            expert: who gave it.
            chat: what that was sent.
            completion: the answer.
            stream: whether it was streamed.
        """
        self._put(_Call(time.time(), query, expert, chat, completion, stream))

    def rate(self, decision: str, expert: str, score: float) -> None:
        """Keeps what a user thinks of the answer that was delivered."""
        self._put(Rating(at=time.time(), decision=decision, expert=expert, score=score))

    def close(self) -> None:
        """Writes what waits."""
        self._ending.set()
        self._thread.join(END_S)

    def _put(self, one: _Call | Rating) -> None:
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(one)
        else:
            metrics.texts.labels("lost").inc()

    def _work(self) -> None:
        while not self._ending.wait(FLUSH_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
        lines = [line for one in taken if (line := self._line(one)) is not None]
        if not lines:
            return
        try:
            self._log.append(lines)
        except Exception as error:  # nobody's answer is to fail for it
            metrics.texts.labels("lost").inc(len(lines))
            if time.monotonic() - self._complained_at > SILENT_S:
                self._complained_at = time.monotonic()
                log.warning("texts cannot be kept: %s", error)
        else:
            metrics.texts.labels("kept").inc(len(lines))

    def _line(self, one: _Call | Rating) -> Line | None:
        """What is written; None for what is no question of a table, which is counted."""
        if isinstance(one, Rating):
            return one
        try:
            text = question_of(one.expert.spec, one.chat, one.stream, one.completion.finish_reason)
            answer = storable(as_answer(one.completion, cut_off=False))
            if answer.error is not None:
                raise NoQuestion("unusable")
            key = self._key(one.expert)(Query(one.query.query_id, text))
            return KeptAnswer(
                at=one.at,
                decision=one.query.query_id,
                key=key,
                expert=one.expert.name,
                text=text,
                domain=one.query.domain,
                answer=answer,
            )
        except NoQuestion as error:
            metrics.texts.labels(error.args[0]).inc()
        except Exception as error:
            metrics.texts.labels("lost").inc()
            log.warning("an answer cannot be kept: %s: %s", type(error).__name__, error)
        return None

    def _key(self, expert: LiveExpert) -> Callable[[Query], str]:
        """The keys of an expert's answers, for which the weights of a local model are read once."""
        if expert not in self._keys:
            self._keys[expert] = keys_for(expert.spec)
        return self._keys[expert]


def check_texts(directory: Path) -> None:
    """Raises InputError where texts cannot be kept in a directory."""
    TrafficLog(directory)
