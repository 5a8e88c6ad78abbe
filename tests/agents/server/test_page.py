"""The page shows money and decisions to who has the admin key, as text and not as HTML of others, on both databases."""

from __future__ import annotations

import asyncio
import base64
import re
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from typing import Any

import pytest

from agents.server.chart import chart_of, round_up
from agents.server.journal import Decision, Journal
from agents.server.money import Charge, Ledger
from agents.server.overview import COLORS, Overview, overview
from agents.server.page import percent, render, seconds, usd, wait
from tests.agents.server.running import ADMIN, Running

EVIL = "<script>alert('x')</script>"
NOW = 1_800_000_000.0  # 08:00 UTC


class Text(HTMLParser):
    """The text of a page without its script and style, and its tags with their attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.tags, self._skip = "", list[tuple[str, dict[str, str | None]]](), False
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._skip = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._skip = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._skip else data + " "


def decision(number: int, key_id: int, at: float, **fields: Any) -> Decision:
    defaults: dict[str, Any] = {
        "expert": "small",
        "calls": 1,
        "micro_usd": 2_000,
        "dearest_micro_usd": 10_000,
        "latency_s": 0.1 * number,
        "why": "the policy's choice",
        "estimates": {"small": [0.75, 0.002], EVIL: [0.9, 0.01]},
        "status": 200,
    }
    return Decision(id=f"chatcmpl-{number}", key_id=key_id, at=at, **{**defaults, **fields})


def fill(ledger: Ledger, clock: list[float]) -> None:
    """Two keys, four calls that ended at three hours, and their decisions."""
    ledger.set_team("red", 1.0, "month")
    ledger.add_key(EVIL, 0.01, "day", team="red")
    ledger.add_key("bob")
    infos = ledger.keys()
    evil, bob = (info.key_id for info in infos)
    calls = [  # seconds ago, key, expert, micro-dollars, lost, outcome
        (30 * 3_600, bob, "large", 50_000, 0, "answered"),
        (7_200, bob, "large", 10_000, 0, "answered"),
        (600, evil, "small", 2_000, 0, "answered"),
        (60, evil, "gone", 0, 700, "failed"),
    ]

    async def go() -> None:
        journal = Journal(ledger)
        await journal.begin()
        for number, (ago_s, key, expert, micro, lost, outcome) in enumerate(calls, 1):
            clock[0] = NOW - ago_s
            reservation = await ledger.reserve(key, f"r{number}", expert, 60_000 if key == bob else 5_000, 600)
            await ledger.settle(reservation, Charge(micro, lost, outcome=outcome, latency_s=0.5))
            failed = outcome == "failed"
            journal.add(
                decision(
                    number,
                    key,
                    NOW - ago_s,
                    expert="" if failed else expert,
                    micro_usd=micro,
                    status=502 if failed else 200,
                )
            )
        await journal.rate("chatcmpl-3", evil, 0.25)
        await journal.close()

    asyncio.run(go())
    clock[0] = NOW


@pytest.fixture
def filled(ledger_url: str) -> Any:
    clock = [NOW]
    ledger = Ledger.open(ledger_url, clock=lambda: clock[0])
    fill(ledger, clock)
    yield ledger
    ledger.close()


IS_OPEN = {"small": False, "large": True}


def read(ledger: Ledger, hours: int = 24) -> Overview:
    return ledger.run(lambda connection: overview(connection, IS_OPEN, hours, NOW), False)


def test_sums_are_those_of_ledger_and_journal(filled: Ledger):
    day, week, hour = read(filled), read(filled, 168), read(filled, 1)
    assert (day.today_micro, day.spent_micro, week.spent_micro, hour.spent_micro) == (12_000, 12_000, 62_000, 2_000)
    assert (day.requests, day.errors, day.lost_micro) == (3, 1, 700)
    assert (day.dearest_micro, day.answered_micro) == (20_000, 12_000)
    assert day.median_s == pytest.approx(0.25) and day.p99_s == pytest.approx(0.299)
    small, large, gone = day.experts
    assert (small.name, small.requests, small.mean_micro, small.mean_s, small.is_open) == (
        "small",
        1,
        2_000,
        0.5,
        False,
    )
    assert (large.money_share, large.is_open) == (pytest.approx(10 / 12), True)
    assert (gone.name, gone.failures, gone.mean_s, gone.is_open) == ("gone", 1, None, None)
    assert [row.recorded.decision.id for row in day.decisions] == [f"chatcmpl-{n}" for n in (4, 3, 2, 1)]
    assert [row.recorded.feedback for row in day.decisions] == [None, 0.25, None, None]


def test_the_chart_has_each_amount_in_its_interval(filled: Ledger):
    day, hour = read(filled).chart, read(filled, 1).chart
    assert len(day.bars) == 24 and len(hour.bars) == 12
    assert {i: bar.micro_usd for i, bar in enumerate(day.bars) if bar.micro_usd} == {21: 10_000, 22: 2_000}
    assert {i: bar.micro_usd for i, bar in enumerate(hour.bars) if bar.micro_usd} == {9: 2_000}
    assert day.bars[22].label == "Fri 15 Jan, 07:00 to 08:00" and day.bars[22].parts[0].series == "small"
    assert sum(bar.micro_usd for bar in read(filled, 168).chart.bars) == 62_000


def test_limits_tell_what_is_left_of_each(filled: Ledger):
    limits = {(one.account.scope, one.account.name): one for one in read(filled).limits}
    assert [scope for scope, _ in limits] == ["server", "team", "key", "key"]
    assert limits["key", EVIL].account.left_micro == 8_000 and limits["team", "red"].recent_micro == 2_000
    assert limits["key", "bob"].account.micro_usd is None and limits["key", "bob"].recent_micro == 10_000
    filled.revoke("bob")
    assert [one.revoked for one in read(filled).limits] == [False, False, True, False]


def test_the_page_shows_it_and_escapes_every_name(filled: Ledger):
    html = render(read(filled), "the-nonce")
    page = Text(html)
    assert EVIL not in html and "&lt;script&gt;alert" in html
    assert [attributes["nonce"] for tag, attributes in page.tags if tag in ("script", "style")] == ["the-nonce"] * 2
    assert not any(name.startswith("on") or name == "style" for _, attributes in page.tags for name in attributes)
    for text in (
        "Spent today $0.0120",
        "Saved $0.008000 40% of an estimated $0.0200",
        "Latency, median 250 ms",
        "Errors 1 33% of requests; $0.000700 lost",
        f"{EVIL} $0.002000 $0.002000 $0.00 $0.0100 a day $0.008000 left (80%) refills in 16 h",
        "large 1 $0.0100 $0.0100 500 ms 0 open: left alone",
        "gone 0 $0.00 – – 1 not in the pool",  # noqa: RUF001
        f"Estimated cost small 0.75 $0.002000 {EVIL} 0.90 $0.0100",
        "none 502",
        "0.25 07:50:00",
        "14 Jan 02:00",
    ):
        assert text in page.text, text
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert headers and all(attributes.get("scope") in ("row", "col") for attributes in headers)
    images = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert images and all(attributes.get("aria-label") for attributes in images)


@pytest.mark.parametrize("hours", [1, 24, 168])
def test_an_empty_store_has_a_page_too(ledger: Ledger, hours: int):
    async def begin() -> None:
        journal = Journal(ledger)
        await journal.begin()
        await journal.close()

    asyncio.run(begin())
    page = Text(render(read(ledger, hours), "n"))
    assert "Nothing was asked yet" in page.text and "Spent today $0.00" in page.text and "small 0 $0.00" in page.text


def test_of_many_experts_those_that_cost_most_have_colors(filled: Ledger):
    many = {f"expert-{i}": False for i in range(300)}
    shown = filled.run(lambda connection: overview(connection, many, 24, NOW), False)
    colors = list(shown.colors.values())
    assert len(colors) == 303 and colors.count(COLORS) == 303 - (COLORS - 1) and shown.colors["large"] < COLORS
    assert "and 294 more" in Text(render(shown, "n")).text


def get(url: str, password: str | None) -> tuple[int, Any, str]:
    """Status, headers and text."""
    request = urllib.request.Request(url)
    if password is not None:
        request.add_header("authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.headers, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def test_only_the_admin_key_opens_it(server: Running):
    for password in (None, "wrong", "", server.key("curious")):
        status, headers, text = get(server.url, password)
        assert status == 401 and headers["www-authenticate"].startswith("Basic") and "curious" not in text
    assert get(f"{server.url}/?hours=2", ADMIN)[0] == 400


def test_only_scripts_and_styles_of_its_own_run(server: Running):
    pages = [get(f"{server.url}/?hours={hours}", ADMIN) for hours in (1, 168)]
    nonces = []
    for status, headers, text in pages:
        policy = headers["content-security-policy"]
        (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
        assert status == 200 and f'<script nonce="{nonce}">' in text and "unsafe" not in policy
        assert headers["cache-control"] == "no-store" and headers["x-frame-options"] == "DENY"
        nonces.append(nonce)
    assert nonces[0] != nonces[1]


def test_what_was_just_asked_is_on_it(server: Running):
    name = "key of the page's test"
    message: Any = {"role": "user", "content": "a prompt that is shown nowhere"}
    answer = server.client(server.key(name)).chat.completions.create(model="leeroo", messages=[message])
    deadline = time.monotonic() + 10
    html = ""
    while answer.id not in html and time.monotonic() < deadline:
        html = get(server.url, ADMIN)[2]
        time.sleep(0.1)
    assert answer.id in html and name in Text(html).text and "shown nowhere" not in html


def test_numbers_are_short():
    assert [usd(micro) for micro in (0, 1, 9_999, 10_000, 1_234_567_890, -20_000)] == [
        "$0.00",
        "$0.000001",
        "$0.009999",
        "$0.0100",
        "$1,234.57",
        "\u2212$0.0200",
    ]
    assert [seconds(one) for one in (0.0123, 1.5, 75.0)] == ["12 ms", "1.50 s", "75.0 s"]
    assert [percent(one) for one in (0, 0.004, 0.5)] == ["0%", "0.4%", "50%"]
    assert [wait(one, 0) for one in (90, 7_200, 200_000)] == ["2 min", "2 h", "2 days"]
    assert [round_up(one) for one in (0, 10, 11, 20, 99, 100, 450, 10**9 + 1)] == [
        10, 10, 20, 20, 100, 100, 500, 2 * 10**9,
    ]  # fmt: skip


def test_bars_are_stacked_from_the_bottom():
    chart = chart_of([0.0, 3_600.0], 3_600, {(1, "a"): 60, (1, "b"): 20}, ["a", "b"])
    assert chart.top_micro == 100 and chart.bars[0].parts == []
    assert [(part.series, part.y, part.height) for part in chart.bars[1].parts] == [("a", 40, 60), ("b", 20, 20)]
