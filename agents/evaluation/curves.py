"""Lays out curves of score over dollars for an SVG of 100 by 100 units: both axes, lines, and marked points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from agents.evaluation.headline import dollars
from agents.evaluation.plots import NAMED, short

APART = (24.0, 7.0)  # percent of the chart by which labels keep clear of each other
LOG_FROM = 5.0  # the highest of dollars over the lowest from which on their axis is logarithmic
STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Axis:
    """What its two ends stand for."""

    low: float
    high: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Percent of the way from the low end to the high one, between which it is kept."""
        low, high, value = (math.log(x) if self.is_log else x for x in (self.low, self.high, max(value, self.low)))
        return round(100 * min((value - low) / (high - low), 1.0), 2)

    def ticks(self) -> list[float]:
        """Round values from end to end."""
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1, 2, 5), (1,)):
                values = [k * 10.0**power for power in powers for k in factors]
                shown = [value for value in values if self.low <= value <= self.high]
                if len(shown) <= 8:
                    break
            return shown[:: math.ceil(len(shown) / 8)]
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * k for k in STEPS if power * k >= raw * (1 - 1e-9))
        return [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step * (1 + 1e-9)) + 1)]


def axis_of(values: Sequence[float], is_money: bool) -> Axis:
    """An axis with room for the values; of money it is logarithmic where they are far apart."""
    low, high = min(values), max(values)
    if is_money and low > 0 and high / low >= LOG_FROM:
        margin = (high / low) ** 0.04
        return Axis(low / margin, high * margin, True)
    margin = 0.06 * (high - low) or max(abs(high), 1e-9) * 0.1 or 1.0
    return Axis(max(0.0, low - margin) if low >= 0 else low - margin, high + margin)


@dataclass(frozen=True)
class Line:
    """A curve, in percent of the chart, y from the top.

    Attributes:
        name: for the legend.
        color: number of the color.
        points: by x.
        band: the corners of its 95 % band; none: it has no band.
        dashed: whether it is drawn in dashes.
        shown: whether it is before the reader chooses.
    """

    name: str
    color: int
    points: list[tuple[float, float]]
    band: list[tuple[float, float]] = field(default_factory=list)
    dashed: bool = False
    shown: bool = True


@dataclass(frozen=True)
class Mark:
    """A point with a short name and a title, in percent of the chart; `labelled` where there is room for the name."""

    name: str
    title: str
    x: float
    y: float
    labelled: bool


@dataclass(frozen=True)
class Chart:
    """The axes of dollars per 1,000 queries and of score, and what is drawn."""

    x: Axis
    y: Axis

    def place(self, usd: float, score: float) -> tuple[float, float]:
        return self.x.at(usd), round(100 - self.y.at(score), 2)

    def line(
        self,
        name: str,
        color: int,
        usd: Sequence[float],
        score: Sequence[float],
        half: Sequence[float] = (),
        dashed: bool = False,
        shown: bool = True,
    ) -> Line:
        """A curve; `half` is half the width of its band."""
        order = np.argsort(usd, kind="stable")
        points = [self.place(usd[i], score[i]) for i in order]
        above = [self.place(usd[i], score[i] + half[i]) for i in order] if len(half) else []
        below = [self.place(usd[i], score[i] - half[i]) for i in order[::-1]] if len(half) else []
        return Line(name, color, points, above + below, dashed, shown)

    def marks(self, names: Sequence[str], usd: Sequence[float], score: Sequence[float]) -> list[Mark]:
        """Points with names, which are written out from the highest score down as far as there is room."""
        places = [self.place(*pair) for pair in zip(usd, score, strict=True)]
        written: list[tuple[float, float]] = []
        marks = []
        for i in sorted(range(len(names)), key=lambda i: (-score[i], usd[i])):
            x, y = places[i]
            room = len(written) < NAMED and all(abs(x - a) > APART[0] or abs(y - b) > APART[1] for a, b in written)
            if room:
                written.append((x, y))
            marks.append(Mark(short(names[i]), f"{names[i]}: {score[i]:.3f} at {dollars(usd[i])}", x, y, room))
        return marks

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        return [(self.x.at(value), dollar_tick(value)) for value in self.x.ticks()]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        return [(round(100 - self.y.at(value), 2), f"{value:.3g}") for value in self.y.ticks()]


def chart_of(usd: Sequence[float], score: Sequence[float]) -> Chart:
    """A chart with room for all of these points."""
    return Chart(axis_of(usd, True), axis_of(score, False))


def dollar_tick(usd: float) -> str:
    """Dollars without zeros at the end."""
    text = dollars(usd)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
