"""Remembers what is no money: decisions with their reasons, what users thought of them, and who answers a conversation.

Written to the ledger's database a moment later, many at once. What was not written when a process was killed is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from agents.server.money import Ledger, StoreUnavailable
from agents.server.money.writer import is_own_fault
from agents.server.texts import Texts

FLUSH_S = 0.2
REMEMBERED = 10_000  # conversations in memory
KEPT_S = 14 * 86_400.0  # conversations and decisions in the database
MOST_NAME = 200  # characters of an expert's name
MOST_WAITING = 20_000  # rows, while the database is away

log = logging.getLogger(__name__)
metadata = sa.MetaData()
decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("key_id", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False, index=True),
    sa.Column("expert", sa.String(MOST_NAME), nullable=False),
    sa.Column("calls", sa.Integer, nullable=False),
    sa.Column("micro_usd", sa.BigInteger, nullable=False),
    sa.Column("dearest_micro_usd", sa.BigInteger, nullable=False),
    sa.Column("latency_s", sa.Float, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("estimates", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("feedback", sa.Float),
    sa.Column("policy", sa.String(MOST_NAME)),
)
conversations = sa.Table(
    "conversations",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("expert", sa.String(MOST_NAME), nullable=False),
    sa.Column("at", sa.Float, nullable=False, index=True),
)


@dataclass(frozen=True)
class Decision:
    """One answered or refused request.

    Attributes:
        id: also of the answer.
        key_id: who asked.
        at: Unix seconds.
        expert: whose answer was delivered; "" for none.
        calls: that were made.
        micro_usd: what the key was charged.
        dearest_micro_usd: an estimate of what always asking the most expensive expert would have cost.
        latency_s: of the whole request.
        why: for people.
        estimates: score and cost_usd by expert.
        status: of the HTTP response.
        policy: the name of the one that decided; "" where none did.
    """

    id: str
    key_id: int
    at: float
    expert: str
    calls: int
    micro_usd: int
    dearest_micro_usd: int
    latency_s: float
    why: str
    estimates: dict[str, list[float | None]]
    status: int
    policy: str = ""


class Journal:
    """For one event loop; `begin` and `close` start and end its task."""

    def __init__(self, ledger: Ledger, texts: Texts | None = None):
        """Args: where it writes, and what keeps texts; None: no text is kept."""
        self._ledger, self.texts = ledger, texts
        self._conversations: OrderedDict[str, str] = OrderedDict()
        self._new_conversations: dict[str, str] = {}
        self._new_decisions: dict[str, Decision] = {}
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._pruned_at = time.time()

    async def begin(self) -> None:
        """Makes tables and columns that are missing, and begins to write."""
        await asyncio.to_thread(self._ledger.run, make_tables)
        self._task = asyncio.create_task(self._write())

    async def close(self) -> None:
        self._ending.set()
        if self._task is not None:
            await self._task
        if self.texts is not None:
            await asyncio.to_thread(self.texts.close)

    def add(self, decision: Decision) -> None:
        if len(self._new_decisions) < MOST_WAITING:
            self._new_decisions[decision.id] = decision

    def remember(self, conversation: str, expert: str) -> None:
        """Notes who gave the last answer of a conversation."""
        if len(expert) > MOST_NAME:
            return
        self._conversations[conversation] = expert
        self._conversations.move_to_end(conversation)
        if len(self._conversations) > REMEMBERED:
            self._conversations.popitem(last=False)
        if len(self._new_conversations) < MOST_WAITING:
            self._new_conversations[conversation] = expert

    async def expert_of(self, conversation: str) -> str | None:
        """Who gave the last answer of a conversation, in this process or another."""
        if conversation in self._conversations:
            return self._conversations[conversation]
        query = sa.select(conversations.c.expert).where(conversations.c.id == conversation)
        with contextlib.suppress(StoreUnavailable):  # it is not worth a refusal
            return await self._read(lambda connection: connection.execute(query).scalar())
        return None

    async def rate(self, decision: str, key_id: int, score: float) -> bool:
        """Stores what a user thinks of an answer. False if the key has no such decision."""
        await self._flush()
        own = decisions.c.id == decision, decisions.c.key_id == key_id

        def change(connection: Connection) -> str | None:
            connection.execute(decisions.update().where(*own).values(feedback=score))
            return connection.scalar(sa.select(decisions.c.expert).where(*own))

        expert = await asyncio.to_thread(self._ledger.run, change)
        if expert and self.texts is not None:
            self.texts.rate(decision, expert, score)
        return expert is not None

    async def _read(self, function: Any) -> Any:
        return await asyncio.to_thread(self._ledger.run, function, False)

    async def _write(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ending.wait(), FLUSH_S)
            try:
                await self._flush()
            except StoreUnavailable:
                pass  # tried again with the next
            except Exception as error:  # no reason to write nothing more
                log.exception("decisions could not be written", exc_info=error)

    async def _flush(self) -> None:
        if not (self._new_decisions or self._new_conversations):
            return
        made, spoken = dict(self._new_decisions), dict(self._new_conversations)
        try:
            await self._put(made, spoken)
        except Exception as error:
            if isinstance(error, StoreUnavailable) and not is_own_fault(error):
                raise
            await self._put_one_by_one(made, spoken)
        for key in made:
            self._new_decisions.pop(key, None)
        for key, expert in spoken.items():
            if self._new_conversations.get(key) == expert:
                del self._new_conversations[key]

    async def _put(self, made: dict[str, Decision], spoken: dict[str, str]) -> None:
        await asyncio.to_thread(self._ledger.run, lambda connection: self._insert(connection, made, spoken))

    async def _put_one_by_one(self, made: dict[str, Decision], spoken: dict[str, str]) -> None:
        """Writes what can be written; the fault of one row must not be the others' loss."""
        for decisions_of, spoken_of in [
            *(({k: v}, {}) for k, v in made.items()),
            *(({}, {k: v}) for k, v in spoken.items()),
        ]:
            try:
                await self._put(decisions_of, spoken_of)
            except Exception as error:
                if isinstance(error, StoreUnavailable) and not is_own_fault(error):
                    raise
                log.warning("a decision or conversation cannot be stored: %s", error)

    def _insert(self, connection: Connection, made: dict[str, Decision], spoken: dict[str, str]) -> None:
        now = time.time()
        if made:
            known = set(connection.scalars(sa.select(decisions.c.id).where(decisions.c.id.in_(list(made)))))
            new = [one for one in made.values() if one.id not in known]
            if new:
                rows = [
                    {
                        **vars(one),
                        "expert": one.expert[:MOST_NAME],
                        "policy": one.policy[:MOST_NAME],
                        "estimates": json.dumps(one.estimates),
                    }
                    for one in new
                ]
                connection.execute(decisions.insert(), rows)
        if spoken:
            connection.execute(conversations.delete().where(conversations.c.id.in_(list(spoken))))
            rows = [{"id": key, "expert": expert, "at": now} for key, expert in spoken.items()]
            connection.execute(conversations.insert(), rows)
        if now - self._pruned_at > 3_600:
            self._pruned_at = now
            for table in (decisions, conversations):
                connection.execute(table.delete().where(table.c.at < now - KEPT_S))


def make_tables(connection: Connection) -> None:
    """Makes the tables of this version, and the columns that those of an earlier version lack."""
    metadata.create_all(connection)
    for table in metadata.sorted_tables:
        known = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in known:
                told = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {told}"))


@dataclass(frozen=True)
class Recorded:
    """A decision as it is stored."""

    decision: Decision
    feedback: float | None
    """what a user thought of the answer, from 0 to 1; None: nothing was said"""


@dataclass(frozen=True)
class Totals:
    """Sums over the decisions with one expert and one HTTP status."""

    expert: str
    status: int
    requests: int
    micro_usd: int
    dearest_micro_usd: int


def recent(connection: Connection, n: int) -> list[Recorded]:
    """The last `n` decisions, newest first."""
    query = sa.select(decisions).order_by(decisions.c.at.desc(), decisions.c.id).limit(n)
    found = []
    for row in connection.execute(query).mappings():
        fields = {**row, "estimates": json.loads(row["estimates"]), "policy": row["policy"] or ""}
        feedback = fields.pop("feedback")
        found.append(Recorded(Decision(**fields), feedback))
    return found


def totals(connection: Connection, since: float) -> list[Totals]:
    """By expert and status, of what was decided from `since` on."""
    row = decisions.c
    sums = sa.func.sum(row.micro_usd), sa.func.sum(row.dearest_micro_usd)
    query = sa.select(row.expert, row.status, sa.func.count(), *sums).where(row.at >= since)
    found = connection.execute(query.group_by(row.expert, row.status)).all()
    return [Totals(expert, status, n, int(micro), int(dearest)) for expert, status, n, micro, dearest in found]


def latencies(connection: Connection, since: float, most: int) -> list[float]:
    """Seconds of the last answered requests from `since` on, `most` at most."""
    query = sa.select(decisions.c.latency_s).where(decisions.c.at >= since, decisions.c.status == 200)
    return list(connection.scalars(query.order_by(decisions.c.at.desc()).limit(most)))


@dataclass(frozen=True)
class PolicyTotals:
    """Sums over the answered requests about which one policy decided; `squared` is of feedback."""

    policy: str
    requests: int
    micro_usd: int
    latency_s: float
    rated: int
    feedback: float
    squared: float


def by_policy(connection: Connection, since: float) -> list[PolicyTotals]:
    """By policy, of what was decided from `since` on, the one with most requests first."""
    row = decisions.c
    count, rated = sa.func.count(), sa.func.count(row.feedback)
    sums = [sa.func.coalesce(sa.func.sum(one), 0) for one in (row.feedback, row.feedback * row.feedback)]
    query = sa.select(row.policy, count, sa.func.sum(row.micro_usd), sa.func.sum(row.latency_s), rated, *sums)
    query = query.where(row.at >= since, row.status == 200, row.policy != "").group_by(row.policy)
    rows = connection.execute(query.order_by(count.desc(), row.policy))
    return [PolicyTotals(policy, n, int(micro), *rest) for policy, n, micro, *rest in rows]
