"""An expert that workers of a cluster ask, while the spend cap and the answers stay with the program that collects.

A batch goes to a worker with its worst cost, which is reserved before: a lease. Each answer comes back as soon as it is
there, and the lease is settled after all are stored. Of a worker that is lost, killed say, the calls that were not
answered may have been billed: the most that they can cost counts as spent, and they are made again under a new lease.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from queue import LifoQueue
from typing import Any

from experts.cluster.asker import Part
from experts.cluster.session import last_line
from experts.specs import ExpertSpec
from experts.spending import CAP_REACHED, NOT_ASKED, SpendCap, not_asked
from experts.types import Answer, Query
from leeroo_env.errors import InputError

MOST_LOST = 3  # workers that may be lost over a query before it counts as failed
NO_WORKER_S = 600.0  # the longest wait for a worker to start
RESTART_S = 0.5


class WorkerLost(Exception):
    """The worker ended, or cannot be reached, before all answers were there."""


class Worker:
    """A process somewhere in the cluster, started when it is first needed, and again after it was lost.

    Args:
        start: starts it for a purpose, such as the model to load.
    """

    def __init__(self, start: Callable[[Any], Any]) -> None:
        self._start, self._lock = start, threading.Lock()
        self._actor: Any = None
        self._purpose: Any = None

    def actor(self, purpose: Any) -> Any:
        """The running process for this purpose; one for another purpose is stopped."""
        with self._lock:
            if self._actor is None or self._purpose is not purpose:
                self._stop()
                self._actor, self._purpose = self._started(purpose), purpose
            return self._actor

    def stop(self, actor: Any = None) -> None:
        """Stops the process, whatever it is doing, but not another one that has replaced `actor`."""
        with self._lock:
            if actor is None or actor is self._actor:
                self._stop()

    def _started(self, purpose: Any) -> Any:
        """A process that runs. Raises InputError if it cannot start."""
        import ray

        until_s = time.monotonic() + NO_WORKER_S
        while True:
            actor = self._start(purpose)
            try:
                ray.get(actor.__ray_ready__.remote(), timeout=NO_WORKER_S)
                return actor
            except ray.exceptions.RayError as error:  # its machine may have been lost, which is not known at once
                ray.kill(actor)
                if getattr(error, "actor_init_failed", False) or time.monotonic() > until_s:
                    raise InputError(f"a worker of the cluster cannot start: {last_line(error)}") from None
                time.sleep(RESTART_S)

    def _stop(self) -> None:
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None


@dataclass
class Call:
    """A query of a batch, and what became of it so far.

    Attributes:
        place: of the query in the batch.
        lost_usd: what attempts without an answer were or may have been billed.
        leases: how often it was sent to a worker.
        lost: how many workers were lost over it.
    """

    place: int
    query: Query
    lost_usd: float = 0.0
    leases: int = 0
    lost: int = 0

    def refused(self) -> Answer:
        return self.failed(f"{CAP_REACHED}: no money for another attempt") if self.lost_usd else not_asked()

    def failed(self, error: str) -> Answer:
        return Answer("", 0, 0, 0.0, 0.0, error=error, lost_usd=self.lost_usd)


class ClusterExpert:
    """Asks through workers, from any number of threads.

    Args:
        lanes: the workers, each as often as it may have batches at a time; the one used last is used next, as it runs.
        purpose: what the workers are started for.
        batch_size: the number of queries that a batch should have.
    """

    def __init__(
        self, spec: ExpertSpec, spend_cap: SpendCap, lanes: LifoQueue[Worker], purpose: Any, batch_size: int
    ) -> None:
        self.name, self.spec = spec.name, spec
        self.lanes, self.batch_size = lanes.qsize(), batch_size
        self._spend_cap, self._free, self._purpose = spend_cap, lanes, purpose
        self._overrun = 1.0  # the largest factor by which a call has cost more than its worst case

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """One answer to each query."""
        answers = dict(one for part in self.answer_in_parts(queries) for one in part)
        return [answers[i] for i in range(len(queries))]

    def answer_in_parts(self, queries: Sequence[Query]) -> Iterator[Part]:
        """The answers as they come, each with the place of its query. A part is paid for when the next is asked for."""
        rest = [Call(i, query) for i, query in enumerate(queries)]
        while rest:
            leased = self._lease([call.query for call in rest])
            if not leased:
                yield [(call.place, call.refused()) for call in rest]
                return
            batch, rest = rest[: len(leased)], rest[len(leased) :]
            rest += yield from self._ask(batch, leased)

    def _lease(self, queries: Sequence[Query]) -> list[float]:
        """Reserves the worst cost of the first queries, as many as the spend cap pays for, and at least one if it waits
        for calls in flight; none if it refuses."""
        worst_usd = [self.spec.worst_usd(query) * self._overrun for query in queries]
        return worst_usd[: self._spend_cap.reserve_first(worst_usd)]

    def _ask(self, batch: Sequence[Call], leased: Sequence[float]) -> Generator[Part, None, list[Call]]:
        """The answers to a batch; returns the calls that are to be made again."""
        open_calls, again, billed_usd = dict(enumerate(batch)), [], 0.0
        usd = math.inf if self._spend_cap.max_usd == math.inf else math.fsum(leased)
        try:
            for part in self._parts([call.query for call in batch], usd):
                billed_usd += math.fsum(answer.billed_usd for _, answer in part)
                answered: Part = []
                for i, answer in part:
                    call = open_calls.pop(i)
                    self._learn_overrun(call.query, answer)
                    call.leases += 1
                    call.lost_usd += answer.lost_usd
                    if _lacked_money(answer) and call.leases <= self.spec.attempts:
                        again.append(call)  # its lease did not pay for another attempt, but a new one may
                    else:
                        answered.append((call.place, replace(answer, lost_usd=call.lost_usd)))
                yield answered
        except WorkerLost as error:
            most_usd = self.spec.attempts * math.fsum(leased[i] for i in open_calls)
            left_usd = min(max(math.fsum(leased) - billed_usd, 0.0), most_usd)
            billed_usd += left_usd
            for call in open_calls.values():
                call.lost_usd += left_usd / len(open_calls)
                call.lost += 1
            given_up = [call for call in open_calls.values() if call.lost >= MOST_LOST]
            again += [call for call in open_calls.values() if call.lost < MOST_LOST]
            print(f"{self.name}: {error}, {len(again)} calls are made again", file=sys.stderr)
            yield [(call.place, call.failed(str(error))) for call in given_up]
        finally:  # what was billed first, so that the cap never seems to have more left than it has
            for reserved, spent in zip(leased, [billed_usd] + [0.0] * (len(leased) - 1), strict=True):
                self._spend_cap.settle(reserved, spent)
        return again

    def _parts(self, queries: Sequence[Query], usd: float) -> Iterator[Part]:
        """The parts of a batch, asked by the next free worker. Raises WorkerLost."""
        import ray

        worker = self._free.get()
        actor = None
        try:
            actor = worker.actor(self._purpose)
            for part in actor.ask.remote(self.name, queries, usd):
                yield ray.get(part)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            worker.stop(actor)  # it must not go on if it only cannot be reached
            raise WorkerLost(f"a worker was lost ({type(error).__name__})") from None
        finally:
            self._free.put(worker)

    def _learn_overrun(self, query: Query, answer: Answer) -> None:
        worst_usd = self.spec.worst_usd(query)
        if worst_usd > 0:
            self._overrun = max(self._overrun, answer.cost_usd / worst_usd)


def _lacked_money(answer: Answer) -> bool:
    return answer.error == NOT_ASKED or (answer.error or "").startswith(CAP_REACHED)
