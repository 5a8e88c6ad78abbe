"""An expert that has changed is noticed, chance is not; page and metrics say what differs and how sure it is."""

from __future__ import annotations

import asyncio
import json
import math
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection

from agents.server.drift import RECENT_S, Drift, Watch, drifts
from agents.server.journal import Journal, decisions
from agents.server.money import Ledger
from agents.server.money.schema import ledger as ledger_rows
from agents.server.overview import overview
from agents.server.page import amount, change, render, sure
from agents.shifts import Shift, ratio_to_before, score_against_before
from tests.agents.server.running import ADMIN, Running
from tests.agents.server.test_page import NOW, Text, get

DAY = 86_400.0
BEFORE, RECENT = 120, 60
CHANGES = {  # by expert: what its tokens, seconds and feedback become
    "steady": (1.0, 1.0, 0.8),
    "longer": (2.0, 1.0, 0.8),
    "slower": (1.0, 1.8, 0.8),
    "worse": (1.0, 1.0, 0.3),
    "slightly dearer": (1.1, 1.0, 0.8),
}


def rows_of(expert: str, rng: np.random.Generator) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of ledger and decisions: a day before the last two, and since then."""
    tokens_times, seconds_times, good = CHANGES.get(expert, (1.0, 1.0, 0.8))
    n = (5, 5) if expert == "few" else (BEFORE, RECENT)
    calls, made = [], []
    for i in range(sum(n)):
        is_recent = i >= n[0]
        at = NOW - (0.5 * DAY if is_recent else RECENT_S + DAY) - i
        expected = 100 * math.exp(0.3 * rng.normal())
        tokens = max(1, round(expected * math.exp(0.05 * rng.normal()) * (tokens_times if is_recent else 1)))
        seconds = math.exp(0.3 * rng.normal()) * (seconds_times if is_recent else 1)
        rated = float(rng.random() < (good if is_recent else 0.8))
        zero = dict.fromkeys(("lost_micro_usd", "cached", "cache_write", "reasoning"), 0)
        call = {
            "reservation_id": f"{expert} {i}",
            "request_id": "r",
            "key_id": 1,
            "expert": expert,
            "usage": "reported",
        }
        call |= {"worst_micro": tokens, "micro_usd": tokens, "input": 1, "output": tokens, "latency_s": seconds}
        calls.append({**zero, **call, "outcome": "answered", "price_version": "", "settled_at": at, "settled_hour": 0})
        one = {"id": f"{expert} {i}", "key_id": 1, "at": at, "expert": expert, "calls": 1, "micro_usd": tokens}
        one |= {"dearest_micro_usd": 0, "latency_s": seconds, "why": "", "status": 200, "feedback": rated}
        made.append({**one, "estimates": json.dumps({expert: [0.8, expected / 1e6], "other": [None, 1.0]})})
    return calls, made


@pytest.fixture
def drifted(ledger: Ledger) -> Ledger:
    async def begin() -> None:
        journal = Journal(ledger)
        await journal.begin()
        await journal.close()

    asyncio.run(begin())
    rng = np.random.default_rng(0)
    for expert in [*CHANGES, "few"]:
        calls, made = rows_of(expert, rng)
        for table, rows in ((ledger_rows, calls), (decisions, made)):
            ledger.run(partial(Connection.execute, statement=table.insert(), parameters=rows))
    return ledger


def read(ledger: Ledger) -> list[Drift]:
    return ledger.run(lambda connection: drifts(connection, NOW), False)


def test_what_has_changed_is_told_first(drifted: Ledger):
    found = read(drifted)
    assert len(found) == 5 * 6 and {one.tests for one in found} == {30}
    changed = {(one.expert, one.what, one.against) for one in found if one.verdict == "changed"}
    assert changed == {
        ("longer", "cost", "before"),
        ("longer", "length", "before"),
        ("longer", "cost", "estimate"),
        ("slower", "latency", "before"),
        ("worse", "feedback", "before"),
        ("worse", "feedback", "estimate"),
    }
    assert {one.verdict for one in found[:6]} == {"changed"}
    by_name = {(one.expert, one.what, one.against): one for one in found}
    longer = by_name["longer", "cost", "estimate"]
    assert longer.n == RECENT and longer.change == pytest.approx(1.0, abs=0.05) and longer.chance < 1e-9
    assert longer.now == pytest.approx(2 * longer.then, rel=0.1) and 5e-5 < longer.then < 2e-4  # dollars
    assert by_name["worse", "feedback", "before"].change == pytest.approx(-0.5, abs=0.2)
    assert by_name["slightly dearer", "cost", "estimate"].verdict == "small"  # sure, as estimates take the query out
    assert by_name["slightly dearer", "cost", "before"].verdict != "changed"
    assert all(one.verdict == "no sign" for one in found if one.expert == "steady")


def test_the_page_says_so_and_reads_it_rarely(drifted: Ledger):
    watch = Watch()
    first = drifted.run(lambda connection: watch.read(connection, NOW), False)
    assert drifted.run(lambda connection: watch.read(connection, NOW + 30 * DAY), False) is first
    shown = drifted.run(lambda connection: overview(connection, {"steady": False}, 24, NOW, first), False)
    assert shown.more_drifts == sum(one.verdict == "no sign" for one in first)
    text = Text(render(shown, "n")).text
    assert "longer cost 60" in text and "over 99.99% changed" in text and "estimated +" in text
    assert f"Of {shown.more_drifts} more there is no sign of a change" in text
    assert "compared from 20 answers on" in Text(render(overview_of(drifted, []), "n")).text
    assert "No sign of a change in 1 comparisons" in Text(render(overview_of(drifted, [first[-1]]), "n")).text


def overview_of(ledger: Ledger, found: list[Drift]) -> Any:
    return ledger.run(lambda connection: overview(connection, {}, 24, NOW, found), False)


def test_metrics_have_them_too(server: Running):
    status, _, text = get(f"{server.url}/metrics", ADMIN)
    assert status == 200 and "# TYPE leeroo_drift_changed gauge" in text
    from agents.server import metrics

    class NoExperts:
        by_name: dict[str, Any] = {}

    one = Drift("a", "cost", "before", 30, 2.0, 1.0, Shift(math.log(2), 9.0, 0.2))
    shown = metrics.exposition(NoExperts(), [one]).decode()  # type: ignore[arg-type]
    assert re.search(r'leeroo_drift\{against="before",expert="a",what="cost"\} (1\.0|0\.99999)', shown)
    assert 'leeroo_drift_changed{against="before",expert="a",what="cost"} 1.0' in shown


def test_chance_is_no_change():
    rng = np.random.default_rng(0)

    alarms = 0
    for _ in range(500):
        shifts = [ratio_to_before(np.exp(rng.normal(size=20)), np.exp(rng.normal(size=100)))]
        shifts.append(score_against_before(rng.random(20) < 0.8, rng.random(60) < 0.8))
        alarms += sum(shift.is_sure(2) for shift in shifts)
    assert alarms <= 2
    ones = np.ones(30)
    assert ratio_to_before(ones, ones) == Shift(0.0, 0.0, math.log(1.25))
    assert ratio_to_before(2 * ones, ones).is_sure(100) and not ratio_to_before(1.2 * ones, ones).is_sure(1)


def test_amounts_are_short():
    assert [amount(0.5, what) for what in ("feedback", "cost", "latency")] == ["0.50", "$0.5000", "500 ms"]
    assert amount(1234.5, "length") == "1,234"
    assert [sure(chance) for chance in (1.0, 0.04, 0.004, 1e-9)] == ["0%", "96%", "99.60%", "over 99.99%"]
    worse = Drift("a", "feedback", "before", 30, 0.3, 0.8, Shift(-0.5, -9.0, 0.1))
    assert change(worse) == "\u22120.50"
    assert change(Drift("a", "cost", "before", 30, 2.0, 1.0, Shift(math.log(2), 9.0, 0.2))) == "+100%"
