"""Lays out a chart of money over time: stacked bars in an SVG of 100 units of height, 10 units of width a bar."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

HEIGHT = 100.0
STEP = 10.0


@dataclass(frozen=True)
class Part:
    """What one series adds to a bar."""

    series: str
    micro_usd: int
    y: float
    height: float


@dataclass(frozen=True)
class Bar:
    """One interval; `parts` from the bottom up."""

    x: float
    label: str
    micro_usd: int
    parts: list[Part]


@dataclass(frozen=True)
class Chart:
    """Attributes:
    bars: in the order of time.
    top_micro: the amount at the upper edge, a round number.
    width: of all bars, in units.
    marks: labels of the time axis, evenly spread.
    """

    bars: list[Bar]
    top_micro: int
    width: float
    marks: list[str]


def chart_of(
    starts: Sequence[float], step_s: float, micro: Mapping[tuple[int, str], int], series: Sequence[str]
) -> Chart:
    """The chart of micro-dollars by interval and series.

    Args:
        starts: Unix seconds at which intervals begin.
        step_s: their length.
        micro: by number of the interval and series.
        series: the names in the order in which they are stacked, the lowest first.
    """
    sums = [sum(micro.get((i, name), 0) for name in series) for i in range(len(starts))]
    top = round_up(max(sums, default=0))
    bars = []
    for i, start in enumerate(starts):
        parts, y = [], HEIGHT
        for name in series:
            amount = micro.get((i, name), 0)
            if amount:
                height = HEIGHT * amount / top
                y -= height
                parts.append(Part(name, amount, round(y, 3), round(height, 3)))
        bars.append(Bar(i * STEP, _span(start, step_s), sums[i], parts))
    days = len(starts) * step_s > 2 * 86_400
    marks = [_time(start, "%a %d" if days else "%H:%M") for start in _spread([*starts, starts[-1] + step_s], 7, days)]
    return Chart(bars, top, len(starts) * STEP, marks)


def round_up(amount: int) -> int:
    """The least of 1, 2, 5, 10, 20, 50 and so on that is not below an amount."""
    if amount <= 10:
        return 10
    power = 10 ** int(math.log10(amount))
    return int(next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= amount))


def _spread(values: Sequence[float], n: int, days: bool) -> list[float]:
    """About `n` values from first to last, evenly apart."""
    last = len(values) - 1
    parts = n if days else 4
    return [values[round(last * i / parts)] for i in range(parts + 1)]


def _span(start: float, step_s: float) -> str:
    return f"{_time(start, '%a %d %b, %H:%M')} to {_time(start + step_s, '%H:%M')}"


def _time(at: float, pattern: str) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime(pattern)
