"""Shows money and decisions to who has the admin key, as one page of HTML that needs nothing from elsewhere."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import Connection
from starlette.responses import HTMLResponse

from agents.server.drift import Drift, Watch
from agents.server.money import Ledger
from agents.server.overview import COLORS, HOURS, OTHERS, Overview, overview
from agents.server.versions import Problem
from agents.server.wire import ApiError

T = TypeVar("T")
REFRESH_S = 10
NONE, MINUS = "\u2013", "\u2212"
NAMES = {1: "1 hour", 24: "24 hours", 168: "7 days"}
HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Page:
    """Reads over a connection of its own, so that no request waits for a report."""

    def __init__(self, database: str):
        self._database = database
        self._ledger: Ledger | None = None
        self._opening = asyncio.Lock()
        self._watch = Watch()

    async def show(self, is_open: Mapping[str, bool], hours: str, problem: Problem | None) -> HTMLResponse:
        """The page of the last hours. Raises ApiError, StoreUnavailable.

        Args:
            is_open: the experts, and whether they are left alone now.
            hours: as the address has it.
            problem: of the last reload, if it was refused.
        """
        if hours not in map(str, HOURS):
            raise ApiError(400, f"hours: must be {', '.join(map(str, HOURS))}", "invalid_value", "hours")
        now = time.time()

        def gather(connection: Connection) -> Overview:
            return overview(connection, is_open, int(hours), now, self._watch.read(connection, now))

        read = await self._read(gather)
        nonce = secrets.token_urlsafe(16)
        html = await asyncio.to_thread(render, read, nonce, problem)
        return HTMLResponse(html, headers={**HEADERS, **_policy(nonce)})

    async def drifts(self) -> list[Drift]:
        """How experts have changed. Raises StoreUnavailable."""
        return await self._read(lambda connection: self._watch.read(connection, time.time()))

    async def _read(self, function: Callable[[Connection], T]) -> T:
        async with self._opening:
            if self._ledger is None:
                self._ledger = await asyncio.to_thread(Ledger.open, self._database)
        return await asyncio.to_thread(self._ledger.run, function, False)

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()


def render(read: Overview, nonce: str, problem: Problem | None = None) -> str:
    """The HTML; `nonce` lets the page's own script and style run, and no others."""
    return _environment.get_template("page.html").render(
        read=read, problem=problem, nonce=nonce, windows=NAMES, others=OTHERS, n_colors=COLORS, refresh_s=REFRESH_S
    )


def _policy(nonce: str) -> dict[str, str]:
    own = f"'nonce-{nonce}'"
    parts = [
        "default-src 'none'",
        f"script-src {own}",
        f"style-src {own}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return {"content-security-policy": "; ".join(parts)}


def usd(micro: float | None) -> str:
    """Dollars with as many digits as matter."""
    if micro is None:
        return NONE
    dollars = abs(micro) / 1e6
    if dollars == 0 or dollars >= 1:
        digits = 2
    elif dollars >= 0.01:
        digits = 4
    else:
        digits = 6
    return f"{MINUS if micro < 0 else ''}${dollars:,.{digits}f}"


def seconds(value: float | None) -> str:
    """A time that passes, in the unit that suits it."""
    if value is None:
        return NONE
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def percent(share: float) -> str:
    return f"{100 * share:.1f}%" if 0 < share < 0.1 else f"{100 * share:.0f}%"


def clock(at: float, now: float) -> str:
    """When something was, in UTC; with the day if that is not today's."""
    today = at // 86_400 == now // 86_400
    return datetime.fromtimestamp(at, timezone.utc).strftime("%H:%M:%S" if today else "%d %b %H:%M")


def wait(until: float, now: float) -> str:
    """How long it is until something."""
    left_s = max(0.0, until - now)
    if left_s >= 2 * 86_400:
        return f"{left_s / 86_400:.0f} days"
    return f"{left_s / 3_600:.0f} h" if left_s >= 2 * 3_600 else f"{left_s / 60:.0f} min"


def number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.3g}" if isinstance(value, float) else f"{value:,}"


def amount(value: float, what: str) -> str:
    """A mean of feedback, dollars, tokens or seconds."""
    if what == "cost":
        return usd(1e6 * value)
    return seconds(value) if what == "latency" else f"{value:.2f}" if what == "feedback" else f"{value:,.0f}"


def change(one: Drift) -> str:
    """By how much a number differs."""
    times = "" if one.what == "feedback" else "%"
    shown = f"{one.change:+.2f}" if one.what == "feedback" else f"{100 * one.change:+,.0f}"
    return shown.replace("-", MINUS) + times


def sure(chance: float) -> str:
    """How sure it is that something differs, from the probability of the same by chance."""
    return "over 99.99%" if chance < 1e-4 else f"{100 * (1 - chance):.2f}%" if chance < 0.01 else percent(1 - chance)


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(amount=amount, change=change, sure=sure)
_environment.filters.update(usd=usd, seconds=seconds, percent=percent, clock=clock, wait=wait, number=number, iso=iso)
