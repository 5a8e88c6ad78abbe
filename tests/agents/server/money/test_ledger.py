"""What a ledger promises, one promise a test, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DatabaseError

from agents.server.money import Charge, Ledger, Refused, StoreUnavailable, micro_of
from leeroo_env.errors import InputError

DAY = 86400.0
NOON = 1_767_268_800.0  # 2026-01-01T12:00Z


class Clock:
    """Says what it is told to."""

    def __init__(self, now: float = NOON):
        self.now = now

    def __call__(self) -> float:
        return self.now


def key_of(ledger: Ledger, name: str) -> int:
    known = ledger.keys()
    return next(key.key_id for key in known if key.name == name)


def account(ledger: Ledger, name: str, scope: str = "key") -> tuple[int, int, int | None]:
    """Spent, reserved, left."""
    (one,) = (one for one in ledger.accounts() if (one.scope, one.name) == (scope, name))
    return one.spent_micro, one.reserved_micro, one.left_micro


def test_a_worst_case_is_reserved_then_replaced_by_the_cost_once(ledger: Ledger):
    ledger.add_key("a", 1.0)
    key = key_of(ledger, "a")

    async def work() -> None:
        name = await ledger.reserve(key, "r1", "small", 400_000, 60)
        assert account(ledger, "a") == (0, 400_000, 600_000)
        assert await ledger.settle(name, Charge(150_000, input=10, cached=2, cache_write=3, output=4, reasoning=5))
        assert not await ledger.settle(name, Charge(7))

    asyncio.run(work())
    assert account(ledger, "a") == account_all(ledger) == (150_000, 0, 850_000)
    (row,) = ledger.recent()
    assert (row.request_id, row.key, row.team, row.expert, row.worst_micro) == ("r1", "a", None, "small", 400_000)
    assert row.charge == Charge(150_000, input=10, cached=2, cache_write=3, output=4, reasoning=5)


def account_all(ledger: Ledger) -> tuple[int, int, int | None]:
    """The server's spent and reserved, and what the key `a` has left."""
    return *account(ledger, "", "server")[:2], account(ledger, "a")[2]


@pytest.mark.parametrize(("scope", "limits"), [("key a", (1, 9, 9)), ("team t", (9, 1, 9)), ("server", (9, 9, 1))])
def test_a_reservation_is_made_on_every_counter_or_on_none(ledger: Ledger, scope: str, limits: tuple[int, int, int]):
    ledger.set_team("t", limits[1])
    ledger.add_key("a", limits[0], team="t")
    ledger.set_server_limit(limits[2], "day")
    key = key_of(ledger, "a")

    async def work() -> None:
        await ledger.reserve(key, "r", "e", 600_000, 60)
        with pytest.raises(Refused) as refused:
            await ledger.reserve(key, "r", "e", 400_001, 60)
        assert (refused.value.scope, refused.value.left_micro, refused.value.needed_micro) == (scope, 400_000, 400_001)
        assert [one.reserved_micro for one in ledger.accounts()] == [600_000] * 3
        await ledger.reserve(key, "r", "e", 400_000, 60)

    asyncio.run(work())
    assert [one.reserved_micro for one in ledger.accounts()] == [1_000_000] * 3


def test_a_cost_above_its_reservation_is_recorded_in_full(ledger: Ledger):
    ledger.add_key("a", 1.0)
    key = key_of(ledger, "a")

    async def work() -> None:
        name = await ledger.reserve(key, "r", "e", 900_000, 60)
        await ledger.settle(name, Charge(1_200_000))
        with pytest.raises(Refused):
            await ledger.reserve(key, "r", "e", 1, 60)

    asyncio.run(work())
    assert account(ledger, "a") == (1_200_000, 0, 0)


def test_the_operators_loss_counts_against_the_server_only(ledger: Ledger):
    ledger.add_key("a", 1.0)
    ledger.set_server_limit(2.0)
    key = key_of(ledger, "a")

    async def work() -> None:
        name = await ledger.reserve(key, "r", "e", 500_000, 60)
        await ledger.settle(name, Charge(0, 300_000, outcome="failed", usage="assumed"))

    asyncio.run(work())
    assert account(ledger, "a") == (0, 0, 1_000_000)
    assert account(ledger, "", "server") == (300_000, 0, 1_700_000)
    (spent,) = ledger.spending(0, "expert")
    assert (spent.name, spent.micro_usd, spent.lost_micro_usd, spent.attempts, spent.answered) == (
        "e",
        0,
        300_000,
        1,
        0,
    )


def test_expired_reservations_are_charged_at_their_worst_case_by_one_of_two_ledgers(ledger_url: str):
    clock = Clock()
    first, second = (Ledger.open(ledger_url, clock=clock) for _ in range(2))
    first.add_key("a", 1.0)
    key = key_of(first, "a")
    name = asyncio.run(first.reserve(key, "r", "e", 250_000, 10))
    asyncio.run(first.reserve(key, "r", "e", 100_000, 1000))
    clock.now += 9.9
    assert first.recover() == second.recover() == 0
    clock.now += 0.1
    assert (second.recover(), first.recover()) == (1, 0)
    assert not asyncio.run(first.settle(name, Charge(5)))
    assert account(second, "a") == (250_000, 100_000, 650_000)
    (row,) = second.recent()
    assert row.charge == Charge(250_000, usage="assumed", outcome="expired") and row.reservation_id == name
    first.close()
    second.close()


def test_all_of_many_expired_reservations_are_settled(ledger: Ledger):
    ledger.add_key("a")
    key = key_of(ledger, "a")

    async def work() -> None:
        await asyncio.gather(*(ledger.reserve(key, "r", "e", 3, 0) for _ in range(1200)))

    asyncio.run(work())
    assert ledger.recover(time.time() + 1) == 1200
    assert account(ledger, "a") == (3600, 0, None)


async def cancelled_after(work: Callable[[], Awaitable[object]], steps: int) -> None:
    """Starts some work and cancels it after so many turns of the event loop."""
    task = asyncio.ensure_future(work())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


def test_a_settlement_is_done_though_who_waits_is_cancelled(ledger: Ledger):
    ledger.add_key("a", 1.0)
    key = key_of(ledger, "a")

    async def work() -> None:
        for steps in range(1, 20):
            name = await ledger.reserve(key, "r", "e", 10, 60)
            await cancelled_after(lambda name=name: ledger.settle(name, Charge(4)), steps)  # type: ignore[misc]

    asyncio.run(work())
    ledger.check()  # after all that is queued
    assert account(ledger, "a") == (19 * 4, 0, 1_000_000 - 19 * 4)


def test_a_cancelled_reservation_leaves_nothing_reserved(ledger: Ledger):
    ledger.add_key("a", 1.0)
    key = key_of(ledger, "a")

    async def work() -> None:
        for steps in [*range(20), *range(0, 20_000, 1000)]:
            name: list[str] = []

            async def reserve(name: list[str] = name) -> None:
                name.append(await ledger.reserve(key, "r", "e", 10, 60))

            await cancelled_after(reserve, steps)
            for done in name:
                await ledger.settle(done, Charge(0))

    asyncio.run(work())
    ledger.check()  # after all that is queued
    assert account(ledger, "a") == (0, 0, 1_000_000)


def test_500_reservations_at_once_do_not_overdraw_a_dollar(ledger: Ledger):
    ledger.add_key("a", 1.0)
    key = key_of(ledger, "a")

    async def work() -> list[object]:
        calls = (ledger.reserve(key, "r", "e", 30_000, 60) for _ in range(500))
        return await asyncio.gather(*calls, return_exceptions=True)

    done = asyncio.run(work())
    assert sum(isinstance(one, str) for one in done) == 33
    assert sum(isinstance(one, Refused) for one in done) == 467
    assert account(ledger, "a") == (0, 990_000, 10_000)


@pytest.mark.parametrize(
    ("per", "days", "left"), [("day", 0.4, 0), ("day", 0.5, 1_000_000), ("month", 30.4, 0), ("month", 30.5, 1_000_000)]
)
def test_limits_begin_anew_with_days_and_months_in_utc(ledger_url: str, per, days: float, left: int):
    clock = Clock()
    ledger = Ledger.open(ledger_url, clock=clock)
    ledger.add_key("a", 1.0, per)
    key = key_of(ledger, "a")
    asyncio.run(ledger.settle(asyncio.run(ledger.reserve(key, "r", "e", 900_000, 60)), Charge(900_000)))
    ledger.top_up("a", 0.5)
    asyncio.run(ledger.settle(asyncio.run(ledger.reserve(key, "r", "e", 600_000, 60)), Charge(600_000)))
    clock.now += days * DAY
    budget = asyncio.run(ledger.budget(key))
    assert budget.left_micro == left
    assert budget.refills_at is not None and budget.refills_at > clock.now
    clock.now -= DAY  # a clock that is put back begins no period
    assert (asyncio.run(ledger.budget(key)).left_micro or 0) <= left
    ledger.close()


def test_a_total_never_begins_anew(ledger_url: str):
    clock = Clock()
    ledger = Ledger.open(ledger_url, clock=clock)
    ledger.add_key("a", 1.0, "total")
    key = key_of(ledger, "a")
    asyncio.run(ledger.settle(asyncio.run(ledger.reserve(key, "r", "e", 900_000, 60)), Charge(900_000)))
    clock.now += 800 * DAY
    ledger.top_up("a", 0.3)
    budget = asyncio.run(ledger.budget(key))
    assert (budget.left_micro, budget.refills_at) == (400_000, None)
    ledger.close()


def test_the_budget_is_the_least_left_and_lasts_at_the_pace_of_what_binds(ledger_url: str):
    clock = Clock(NOON - 12 * 3600)
    ledger = Ledger.open(ledger_url, clock=clock)
    ledger.set_team("t", 10.0, "day")
    ledger.add_key("a", 1.0, "day", team="t")
    ledger.add_key("b", None, team="t")
    a, b = key_of(ledger, "a"), key_of(ledger, "b")
    assert asyncio.run(ledger.budget(a)).queries_expected == 1

    async def work() -> None:
        async def ask(key: int) -> None:
            for first in (True, False):
                await ledger.settle(await ledger.reserve(key, "r", "e", 1000, 60, first), Charge(0))

        await asyncio.gather(*(ask(key) for key, queries in ((a, 6), (b, 594)) for _ in range(queries)))

    asyncio.run(work())
    clock.now += 6 * 3600  # 6 queries of `a` and 600 of the team in 6 hours; 18 are to come
    budget = asyncio.run(ledger.budget(a))
    assert (budget.left_micro, budget.queries_expected) == (1_000_000, 180)  # the team's $10 for 1800
    budget = asyncio.run(ledger.budget(b))
    assert (budget.left_micro, budget.queries_expected) == (10_000_000, 1800)
    assert budget.refills_at == NOON + 12 * 3600
    ledger.close()


def test_a_rate_holds_in_any_minute_across_ledgers(ledger_url: str):
    clock = Clock()
    ledgers = [Ledger.open(ledger_url, clock=clock) for _ in range(2)]
    secret = ledgers[0].add_key("a", requests_per_minute=4)
    unlimited = ledgers[0].add_key("b")

    async def work() -> None:
        infos = [await ledger.authenticate(secret) for ledger in ledgers]
        key = infos[0].key_id if infos[0] else 0
        admitted: list[float] = []
        for second in range(200):
            wait_s = await ledgers[second % 2].admit(key)
            if wait_s is None:
                admitted.append(clock.now)
            else:
                assert wait_s == pytest.approx(admitted[-4] + 60 - clock.now)
            clock.now += 1
        assert len(admitted) == 16 and all(b - a >= 60 for a, b in zip(admitted, admitted[4:], strict=False))
        other = await ledgers[0].authenticate(unlimited)
        assert other and all([await ledgers[0].admit(other.key_id) is None for _ in range(100)])
        clock.now += 60
        waits = await asyncio.gather(*(ledgers[i % 2].admit(key) for i in range(50)))
        assert waits.count(None) == 4

    asyncio.run(work())
    for ledger in ledgers:
        ledger.close()


def test_only_the_right_secret_opens_and_only_its_hash_is_stored(ledger: Ledger, ledger_url: str):
    ledger.set_team("t", 5.0)
    secret = ledger.add_key("a", 2.5, "day", "t", 60)
    assert len(secret) == 46 and secret.startswith("lr-")

    async def work() -> None:
        info = await ledger.authenticate(secret)
        assert info == ledger.keys()[0] and info is not None
        assert (info.name, info.team, info.micro_usd, info.per, info.requests_per_minute) == (
            "a",
            "t",
            2_500_000,
            "day",
            60,
        )
        assert secret.startswith(info.prefix) and len(info.prefix) < 12
        for wrong in (
            "",
            "lr-",
            secret[:-1],
            secret + "a",
            secret[:-1] + "é",
            secret.swapcase(),
            "x" * 10_000,
            "lr-\0",
        ):
            assert await ledger.authenticate(wrong) is None

    asyncio.run(work())
    with create_engine(make_url(ledger_url).set(drivername=driver(ledger_url))).connect() as connection:
        stored = [tuple(row) for row in connection.execute(text("SELECT * FROM keys"))]
    assert secret[9:] not in str(stored)


def driver(url: str) -> str:
    return "sqlite" if url.startswith("sqlite") else "postgresql+psycopg"


def test_a_revoked_key_is_refused_here_at_once_and_elsewhere_within_5_seconds(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch
):
    here, there = Ledger.open(ledger_url), Ledger.open(ledger_url)
    secret = here.add_key("a", 1.0)

    async def work() -> None:
        info = await here.authenticate(secret)
        assert info and await there.authenticate(secret)
        name = await there.reserve(info.key_id, "r", "e", 5, 60)
        here.revoke("a")
        assert await here.authenticate(secret) is None
        with pytest.raises(Refused, match="key a is revoked"):
            await there.reserve(info.key_id, "r", "e", 5, 60)
        assert await there.settle(name, Charge(3))
        later = time.monotonic() + 5
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert await there.authenticate(secret) is None

    asyncio.run(work())
    assert here.keys()[0].revoked
    here.close()
    there.close()


def test_the_ledger_is_append_only(ledger: Ledger, ledger_url: str):
    ledger.add_key("a")
    asyncio.run(ledger.settle(asyncio.run(ledger.reserve(key_of(ledger, "a"), "r", "e", 5, 60)), Charge(5)))
    engine = create_engine(make_url(ledger_url).set(drivername=driver(ledger_url)))
    for statement in ("UPDATE ledger SET micro_usd = 0", "DELETE FROM ledger"):
        with pytest.raises(DatabaseError, match="append-only"), engine.begin() as connection:
            connection.execute(text(statement))
    engine.dispose()


def test_names_from_clients_cannot_break_a_group(ledger: Ledger):
    ledger.add_key("a", 1.0)
    key = key_of(ledger, "a")
    names = ["\0", "\ud800", "x" * 10_000, "'; DROP TABLE ledger", "é🎉", ""]

    async def work() -> None:
        calls = [ledger.reserve(key, name, name, 10, 60) for name in names] + [ledger.reserve(999, "r", "e", 1, 60)]
        *good, bad = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, str) for one in good) and isinstance(bad, KeyError)
        assert all([await ledger.settle(str(one), Charge(1)) for one in good])

    asyncio.run(work())
    assert account(ledger, "a")[:2] == (6, 0)


@pytest.mark.parametrize("worst", [-1, 10**15 + 1])
def test_absurd_amounts_are_refused(ledger: Ledger, worst: int):
    with pytest.raises(ValueError, match="worst_micro"):
        asyncio.run(ledger.reserve(1, "r", "e", worst, 60))
    for wrong in ({"micro_usd": worst}, {"micro_usd": 0, "output": -1}, {"micro_usd": 0, "latency_s": float("nan")}):
        with pytest.raises(ValueError, match=r"micro_usd|output|latency_s"):
            Charge(**wrong)


def test_costs_are_rounded_up_to_whole_micro_dollars():
    assert [micro_of(usd) for usd in (0, 1e-9, 1e-6, 1.00001e-6, 0.1 + 0.2, 3 * 1.1)] == [
        0,
        1,
        1,
        2,
        300_000,
        3_300_000,
    ]


def test_a_new_period_of_a_limit_counts_what_the_ledger_says_was_spent_in_it(ledger_url: str):
    clock = Clock()
    ledger = Ledger.open(ledger_url, clock=clock)
    ledger.set_team("t", 5.0)
    ledger.add_key("a", team="t")
    ledger.add_key("b")
    for name, charge in (("a", Charge(10, 5)), ("b", Charge(100))):
        asyncio.run(ledger.settle(asyncio.run(ledger.reserve(key_of(ledger, name), "r", "e", 200, 60)), charge))
        clock.now += DAY
    ledger.set_team("t", 3.0, "total")
    ledger.set_server_limit(7.0, "month")
    assert account(ledger, "t", "team") == (10, 0, 2_999_990)
    assert account(ledger, "", "server") == (115, 0, 6_999_885)
    ledger.set_server_limit(None, "day")
    assert account(ledger, "", "server") == (0, 0, None)
    assert [one.name for one in ledger.spending(0, "hour")] == ["2026-01-01T12:00Z", "2026-01-02T12:00Z"]
    assert [(one.name, one.micro_usd) for one in ledger.spending(NOON + 1, "key")] == [("b", 100)]
    ledger.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ledger: ledger.add_key("a"), "there is a key 'a' already"),
        (lambda ledger: ledger.add_key("b", team="ted"), "no team 'ted'; did you mean 'teds'"),
        (lambda ledger: ledger.add_key("b", -1), "at least 0"),
        (lambda ledger: ledger.add_key("b", float("nan")), "at least 0"),
        (lambda ledger: ledger.add_key("b", per="week"), "'week' is no period; there are day, month, total"),
        (lambda ledger: ledger.add_key(" b"), "printable"),
        (lambda ledger: ledger.add_key("b\n"), "printable"),
        (lambda ledger: ledger.add_key("b", requests_per_minute=0), "0 requests per minute"),
        (lambda ledger: ledger.revoke("aa"), "no key 'aa'; did you mean 'a'"),
        (lambda ledger: ledger.top_up("zzz", 1), "no key 'zzz'"),
        (lambda ledger: ledger.top_up("a", 0), "a top-up is at least"),
        (lambda ledger: ledger.top_up("a", 1e9), "above"),
        (lambda ledger: ledger.top_up("free", 1), "has no limit"),
        (lambda ledger: ledger.set_team("", 1), "printable"),
        (lambda ledger: ledger.set_server_limit(float("inf"), "day"), "at least 0"),
    ],
)
def test_bad_names_and_amounts_are_refused_in_one_line(ledger: Ledger, change, message: str):
    ledger.add_key("a", 1.0)
    ledger.add_key("free")
    ledger.set_team("teds", 1.0)
    before = ledger.accounts(), ledger.keys()
    with pytest.raises(InputError, match=message) as error:
        change(ledger)
    assert "\n" not in str(error.value)
    assert (ledger.accounts(), ledger.keys()) == before


def test_a_closed_ledger_refuses(ledger_url: str):
    ledger = Ledger.open(ledger_url)
    ledger.add_key("a")
    key = key_of(ledger, "a")
    ledger.close()
    ledger.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        asyncio.run(ledger.reserve(key, "r", "e", 1, 60))


def test_closing_while_others_ask_leaves_nobody_waiting(tmp_path: Path):
    for number in range(10):
        ledger = Ledger.open(f"sqlite:///{tmp_path}/{number}.db")

        def ask_on(ledger: Ledger = ledger) -> None:
            with contextlib.suppress(StoreUnavailable):
                while True:
                    ledger.recover(0)

        threads = [threading.Thread(target=ask_on, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        ledger.close()
        for thread in threads:
            thread.join(timeout=5)
            assert not thread.is_alive()
