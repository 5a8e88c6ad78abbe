"""A ledger used by two workers against a model that adds up what happened, whatever they do in whatever order."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agents.server.money import Charge, Ledger, Period, Refused
from tests.agents.server.postgres import Postgres

MICRO = st.integers(0, 50)
LIMITS = st.one_of(st.integers(0, 120), st.integers(100, 1000), st.none())
PERIODS = st.sampled_from(["day", "month", "total"])
TEAMS = ["red", "blue"]


@dataclass
class Limit:
    """An account of the model: what was spent and added is looked up in the list of events."""

    micro: int | None
    per: Period
    team: str | None = None
    revoked: bool = False


@dataclass(frozen=True)
class Reservation:
    name: str
    key: str
    worst: int
    expires_at: float
    worker: int


@dataclass(frozen=True)
class Event:
    """Money spent or added."""

    at: float
    key: str
    team: str | None
    spent: int = 0
    lost: int = 0
    added: int = 0


def same_period(per: Period, a: float, b: float) -> bool:
    form = {"day": "%Y-%m-%d", "month": "%Y-%m", "total": ""}[per]
    return datetime.fromtimestamp(a, timezone.utc).strftime(form) == datetime.fromtimestamp(b, timezone.utc).strftime(
        form
    )


class Machine(RuleBasedStateMachine):
    """Two workers on one store; `new_url` is the URL of an empty one."""

    new_url: Callable[[], str]

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_767_268_800.0
        self.url = self.new_url()
        self.loop = asyncio.new_event_loop()
        self.workers = [self.open(), self.open()]
        self.server = Limit(None, "total")
        self.teams: dict[str, Limit] = {}
        self.keys: dict[str, Limit] = {}
        self.events: list[Event] = []
        self.open_reservations: list[Reservation] = []
        self.settled: list[tuple[str, Charge]] = []

    def open(self) -> Ledger:
        return Ledger.open(self.url, clock=lambda: self.now)

    def teardown(self) -> None:
        for worker in self.workers:
            worker.close()
        self.loop.close()

    # The model.

    def limits_of(self, key: str) -> list[tuple[str, str, Limit]]:
        """Scope, name and limit of all that a key spends from."""
        limit = self.keys[key]
        team = [("team", limit.team, self.teams[limit.team])] if limit.team else []
        return [("key", key, limit), *team, ("server", "", self.server)]

    def belongs(self, scope: str, name: str, key: str) -> bool:
        return scope == "server" or name == (key if scope == "key" else self.keys[key].team)

    def sums(self, scope: str, name: str, limit: Limit) -> tuple[int, int, int | None]:
        """Spent, reserved, left."""
        here = [one for one in self.events if self.belongs(scope, name, one.key)]
        here = [one for one in here if same_period(limit.per, one.at, self.now)]
        spent = sum(one.spent + (one.lost if scope == "server" else 0) for one in here)
        reserved = sum(one.worst for one in self.open_reservations if self.belongs(scope, name, one.key))
        if limit.micro is None:
            return spent, reserved, None
        added = sum(one.added for one in here) if scope == "key" else 0
        return spent, reserved, max(limit.micro + added - spent - reserved, 0)

    def charge(self, reservation: Reservation, charge: Charge) -> None:
        self.open_reservations.remove(reservation)
        self.settled.append((reservation.name, charge))
        team = self.keys[reservation.key].team
        self.events.append(Event(self.now, reservation.key, team, charge.micro_usd, charge.lost_micro_usd))

    # What may happen.

    @initialize(per=PERIODS, micro=LIMITS)
    def first_key(self, per: Period, micro: int | None) -> None:
        self.add_key(0, micro, per, None)

    @precondition(lambda self: len(self.keys) < 3)
    @rule(worker=st.integers(0, 1), micro=LIMITS, per=PERIODS, team=st.sampled_from([None, *TEAMS]))
    def add_key(self, worker: int, micro: int | None, per: Period, team: str | None) -> None:
        name, team = f"key{len(self.keys)}", team if team in self.teams else None
        self.workers[worker].add_key(name, None if micro is None else micro / 1e6, per, team)
        self.keys[name] = Limit(micro, per, team)
        self.known = self.workers[worker].keys()

    @rule(worker=st.integers(0, 1), name=st.sampled_from([None, *TEAMS]), micro=LIMITS, per=PERIODS)
    def set_limit(self, worker: int, name: str | None, micro: int | None, per: Period) -> None:
        usd = None if micro is None else micro / 1e6
        if name is None:
            self.workers[worker].set_server_limit(usd, per)
            self.server = Limit(micro, per)
        else:
            self.workers[worker].set_team(name, usd, per)
            self.teams[name] = Limit(micro, per)

    @rule(data=st.data(), worker=st.integers(0, 1), worst=MICRO, ttl_s=st.sampled_from([1.0, 100.0, 100_000.0]))
    def reserve(self, data: st.DataObject, worker: int, worst: int, ttl_s: float) -> None:
        self.try_to_reserve(data.draw(st.sampled_from(sorted(self.keys))), worker, worst, ttl_s)

    @rule(data=st.data(), worker=st.integers(0, 1), more=st.integers(0, 1))
    def reserve_what_is_left(self, data: st.DataObject, worker: int, more: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.keys)))
        left = [left for left in self.left_of(key) if left is not None]
        self.try_to_reserve(key, worker, min(left, default=10) + more, 100.0)

    def left_of(self, key: str) -> list[int | None]:
        return [self.sums(*one)[2] for one in self.limits_of(key)]

    def try_to_reserve(self, key: str, worker: int, worst: int, ttl_s: float) -> None:
        key_id = next(known.key_id for known in self.known if known.name == key)
        asked = self.workers[worker].reserve(key_id, "r", "e", worst, ttl_s)
        if all(left is None or left >= worst for left in self.left_of(key)) and not self.keys[key].revoked:
            name = self.loop.run_until_complete(asked)
            self.open_reservations.append(Reservation(name, key, worst, self.now + ttl_s, worker))
        else:
            with pytest.raises(Refused):
                self.loop.run_until_complete(asked)

    @precondition(lambda self: self.open_reservations)
    @rule(data=st.data(), spent=MICRO, lost=MICRO)
    def settle(self, data: st.DataObject, spent: int, lost: int) -> None:
        one = data.draw(st.sampled_from(self.open_reservations))
        charge = Charge(spent, lost)
        assert self.loop.run_until_complete(self.workers[one.worker].settle(one.name, charge))
        self.charge(one, charge)
        self.settled_before(one.name)

    def settled_before(self, name: str) -> None:
        for worker in self.workers:
            assert not self.loop.run_until_complete(worker.settle(name, Charge(49)))

    @precondition(lambda self: self.open_reservations)
    @rule(worker=st.integers(0, 1))
    def crash(self, worker: int) -> None:
        """Nobody will settle what the worker has reserved but who recovers it."""
        self.workers[worker].close()
        self.workers[worker] = self.open()

    @rule(seconds=st.sampled_from([0.5, 50.0, 3600.0, 40_000.0, 86_400.0, 20 * 86_400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(worker=st.integers(0, 1))
    def recover(self, worker: int) -> None:
        expired = [one for one in self.open_reservations if one.expires_at <= self.now]
        assert self.workers[worker].recover() == len(expired)
        for one in expired:
            self.charge(one, Charge(one.worst, usage="assumed", outcome="expired"))
            self.settled_before(one.name)

    @rule(data=st.data(), worker=st.integers(0, 1), micro=st.integers(1, 100))
    def top_up(self, data: st.DataObject, worker: int, micro: int) -> None:
        limited = sorted(name for name, limit in self.keys.items() if limit.micro is not None)
        if limited:
            name = data.draw(st.sampled_from(limited))
            self.workers[worker].top_up(name, micro / 1e6)
            self.events.append(Event(self.now, name, None, added=micro))

    @precondition(lambda self: sum(not key.revoked for key in self.keys.values()) > 1)
    @rule(data=st.data(), worker=st.integers(0, 1))
    def revoke(self, data: st.DataObject, worker: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.keys)))
        self.workers[worker].revoke(name)
        self.keys[name].revoked = True

    # What always holds.

    @invariant()
    def every_limit_is_as_full_as_the_model_says(self) -> None:
        named = [("server", "", self.server)] + [("team", *one) for one in self.teams.items()]
        expected = {(scope, name): self.sums(scope, name, limit) for scope, name, limit in named}
        expected |= {("key", name): self.sums("key", name, limit) for name, limit in self.keys.items()}
        found = {
            (one.scope, one.name): (one.spent_micro, one.reserved_micro, one.left_micro)
            for one in self.workers[0].accounts()
        }
        assert found == expected

    @invariant()
    def the_ledger_holds_every_settlement_once(self) -> None:
        rows = [(row.reservation_id, row.charge) for row in reversed(self.workers[1].recent(10_000))]
        assert sorted(rows, key=str) == sorted(self.settled, key=str)


def check(new_url: Callable[[], str], examples: int) -> None:
    machine = type("Machine", (Machine,), {"new_url": staticmethod(new_url)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_sqlite():
    directory = tempfile.mkdtemp()
    number = iter(range(10**9))
    check(lambda: f"sqlite:///{directory}/{next(number)}.db", 25)
    shutil.rmtree(directory)


def test_postgresql(postgres: Postgres):
    check(postgres.new_store, 8)
