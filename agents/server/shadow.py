"""Has the other policy decide about requests that one has answered, and stores what both would ask first.

Nothing is asked, and the answer has left when the other policy decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from agents.server import metrics
from agents.server.gateway import MICRO, Gateway
from agents.server.job import Job
from agents.server.journal import KEPT_S, MOST_NAME, metadata
from agents.server.money import Ledger, StoreUnavailable
from agents.server.money.writer import is_own_fault
from agents.server.routing import Plan
from agents.server.service import Service, same_encoder
from agents.server.wire import ApiError
from agents.serving.conversation import needs_of, prompt_tokens

FLUSH_S = 0.5
MOST_AT_ONCE = 256  # requests about which the other policy is to decide; further ones are left out
MOST_WAITING = 20_000  # rows, while the database is away
MOST_S = 30.0
TELL_EVERY_S = 60.0

log = logging.getLogger(__name__)
pairs = sa.Table(
    "decisions_of_two",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("at", sa.Float, nullable=False, index=True),
    *(
        column
        for which in ("first", "second")
        for column in (
            sa.Column(f"{which}_policy", sa.String(MOST_NAME), nullable=False),
            sa.Column(f"{which}_expert", sa.String(MOST_NAME), nullable=False),
            sa.Column(f"{which}_score", sa.Float),
            sa.Column(f"{which}_usd", sa.Float, nullable=False),
        )
    ),
)


@dataclass(frozen=True)
class Choice:
    """What a policy decides first about a request.

    Attributes:
        policy: its name.
        expert: that it would ask.
        score: of that expert, by the policy's estimate; None: it makes none.
        usd: what the call costs, by its estimate.
    """

    policy: str
    expert: str
    score: float | None
    usd: float


@dataclass(frozen=True)
class Pair:
    """What two policies decide about one request; `id` is that of the decision, `at` is in Unix seconds."""

    id: str
    at: float
    first: Choice
    second: Choice


@dataclass(frozen=True)
class Comparison:
    """Two policies over the same requests, each by its own estimates.

    Attributes:
        policies: their names.
        requests: the number of requests.
        agreed: of these, where both would ask the same expert.
        score: the mean estimated scores of what they would ask; None: there are none.
        usd: the mean estimated costs of it.
    """

    policies: tuple[str, str]
    requests: int
    agreed: int
    score: tuple[float | None, float | None]
    usd: tuple[float, float]


class Shadow:
    """For one event loop; `begin` and `close` start and end its task."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._new: list[Pair] = []
        self._deciding = 0
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._told_at = -TELL_EVERY_S
        self._pruned_at = time.time()

    async def begin(self) -> None:
        """Begins to write; the journal has made the table."""
        self._task = asyncio.create_task(self._write())

    async def close(self) -> None:
        self._ending.set()
        if self._task is not None:
            await self._task

    def decide(self, service: Service, job: Job) -> None:
        """Has the other policy decide about a request that was answered without failures, if there is one."""
        other = service.beside(job.policy)
        if other is None or job.plan.state is None or job.failures or self._deciding >= MOST_AT_ONCE:
            return
        self._deciding += 1
        other.start(self._decide(service, service.of(job.policy), other, job))

    async def _decide(self, service: Service, own: Gateway, other: Gateway, job: Job) -> None:
        asked = [] if job.plan.state is None else job.plan.state.asked
        one = choice_of(own, job, own.experts[asked[0]].name if asked else job.expert)
        try:
            twin = as_seen_by(other, job, own)
            expert = await asyncio.wait_for(other.route(twin), MOST_S)
            two = choice_of(other, twin, expert.name)
        except (ApiError, asyncio.TimeoutError):
            return  # it could ask nobody
        except Exception as error:
            if time.monotonic() - self._told_at >= TELL_EVERY_S:
                self._told_at = time.monotonic()
                log.exception("the policy beside could not decide", exc_info=error)
            return
        finally:
            self._deciding -= 1
        first, second = (one, two) if own is service.first else (two, one)
        metrics.compared(first, second)
        if len(self._new) < MOST_WAITING:
            self._new.append(Pair(job.id, time.time(), first, second))

    async def _write(self) -> None:
        is_ending = False
        while not is_ending:
            with contextlib.suppress(asyncio.TimeoutError):
                is_ending = await asyncio.wait_for(self._ending.wait(), FLUSH_S)
            try:
                await self._flush()
            except StoreUnavailable as error:
                if is_own_fault(error):  # else it is tried again with the next
                    self._new.clear()
                    log.warning("decisions of two policies cannot be stored: %s", error)
            except Exception as error:  # no reason to write nothing more
                log.exception("decisions of two policies could not be written", exc_info=error)

    async def _flush(self) -> None:
        made = list(self._new)
        if made:
            await asyncio.to_thread(self._ledger.run, lambda connection: self._insert(connection, made))
            del self._new[: len(made)]

    def _insert(self, connection: Connection, made: list[Pair]) -> None:
        connection.execute(pairs.delete().where(pairs.c.id.in_([one.id for one in made])))
        connection.execute(pairs.insert(), [row_of(one) for one in made])
        now = time.time()
        if now - self._pruned_at > 3_600:
            self._pruned_at = now
            connection.execute(pairs.delete().where(pairs.c.at < now - KEPT_S))


def choice_of(gateway: Gateway, job: Job, expert: str) -> Choice:
    """What a policy estimates of an expert that it chose."""
    k, plan = gateway.numbers[expert], job.plan
    return Choice(gateway.policy, expert, None if plan.score is None else plan.score[k], plan.cost_usd[k])


def as_seen_by(other: Gateway, job: Job, own: Gateway) -> Job:
    """A request of `own` as the policy of `other` would have met it. Raises ApiError: no expert is able to."""
    messages, settings, plan = job.chat.messages, job.chat.settings, job.plan
    needs = needs_of(messages, settings)
    left_micro = None if job.left_micro is None else job.left_micro + job.cost_micro
    return dataclasses.replace(
        job,
        plan=Plan(plan.query, plan.earlier, plan.embedding if same_encoder(own, other) else None),
        money=other.planner.money(None if left_micro is None else left_micro / MICRO, job.money.queries),
        left_micro=left_micro,
        able=other.able(needs, prompt_tokens(messages, settings)),
        max_calls=1 if needs or job.request.stream else other.planner.max_calls,
        deadline=time.monotonic() + other.deadline_s,
        current=None if job.current is None else other.numbers.get(own.experts[job.current].name),
        completions={},
        failures=[],
        cost_micro=0,
        reservations=0,
        why="",
        last_resort=False,
        expert="",
        policy=other.policy,
        is_gone=None,
        span=None,
    )


def row_of(one: Pair) -> dict[str, str | float | None]:
    sides = {"first": one.first, "second": one.second}
    values = {f"{side}_{name}": value for side, choice in sides.items() for name, value in vars(choice).items()}
    names = {name: str(value)[:MOST_NAME] for name, value in values.items() if name.endswith(("_policy", "_expert"))}
    return {"id": one.id, "at": one.at, **values, **names}


def comparisons(connection: Connection, since: float) -> list[Comparison]:
    """All pairs of policies that decided about the same requests from `since` on, the last first."""
    row = pairs.c
    agreed = sa.func.sum(sa.case((row.first_expert == row.second_expert, 1), else_=0))
    means = [sa.func.avg(one) for one in (row.first_score, row.second_score, row.first_usd, row.second_usd)]
    query = sa.select(row.first_policy, row.second_policy, sa.func.count(), agreed, *means).where(row.at >= since)
    query = query.group_by(row.first_policy, row.second_policy).order_by(sa.func.max(row.at).desc())
    return [
        Comparison((one, two), n, int(same), (score, other_score), (usd, other_usd))
        for one, two, n, same, score, other_score, usd, other_usd in connection.execute(query)
    ]


def pairs_of(connection: Connection, ids: Collection[str]) -> dict[str, Pair]:
    """What two policies decided, by the decisions of these ids, as far as both did."""
    found = {}
    for row in connection.execute(sa.select(pairs).where(pairs.c.id.in_(ids))).mappings():
        first, second = (
            Choice(*(row[f"{which}_{name}"] for name in ("policy", "expert", "score", "usd")))
            for which in ("first", "second")
        )
        found[row["id"]] = Pair(row["id"], row["at"], first, second)
    return found
