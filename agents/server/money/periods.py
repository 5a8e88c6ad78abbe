"""When budgets begin anew: days and months in UTC; a total never does."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from agents.server.money.types import Period


def period_start(per: Period, now: float) -> int:
    """The Unix time at which the period that contains `now` began; 0 for a total."""
    if per == "total":
        return 0
    day = datetime.fromtimestamp(now, timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    return int((day if per == "day" else day.replace(day=1)).timestamp())


def period_end(per: Period, start: int) -> int | None:
    """The Unix time at which the period that began at `start` ends; None for a total."""
    if per == "total":
        return None
    day = datetime.fromtimestamp(start, timezone.utc)
    if per == "day":
        return int((day + timedelta(days=1)).timestamp())
    return int((day.replace(day=28) + timedelta(days=4)).replace(day=1).timestamp())
