"""Writes a report as one page of HTML that needs nothing from elsewhere: what `report.md` says, with pictures.

The pictures are drawn from the objects that the text was written from, G budgets and K experts; the text is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from agents.evaluation.appendix import percents
from agents.evaluation.curves import Chart, Line, Mark, axis_of, chart_of
from agents.evaluation.decision import Choice, experts_alone, mixtures
from agents.evaluation.evaluate import Result
from agents.evaluation.headline import Decision, dollars, training_in_short
from agents.evaluation.markdown import Section, sections
from agents.evaluation.matching import Match
from leeroo_env.table import ExpertTable

COLORS = 8  # of experts and lines that are told apart; all further ones share one more
MIXTURE, BEST_ROUTER, DEARER = 8, 5, 5
SAMPLES = 120  # points of a line that is straight in dollars
LEARNING = "training queries"  # what the table of a learning curve has in its first column


@dataclass(frozen=True)
class Pictures:
    """What is drawn.

    Attributes:
        table: of the results.
        subject: the name of the agent, or of the router that the report is about.
        budgets_usd: [G], rising, dollars a query.
        results: on test at these budgets, by router.
        choice: what to deploy.
        matches: what the subject spends for each expert's score.
        regrets: as `agents.evaluation.appendix.regrets`, at `regret_budgets_usd`.
        regret_budgets_usd: dollars a query.
        domains: as `agents.evaluation.appendix.shares_by_domain`.
    """

    table: ExpertTable
    subject: str
    budgets_usd: Sequence[float]
    results: Mapping[str, Result]
    choice: Choice
    matches: Sequence[Match]
    regrets: Mapping[str, np.ndarray]
    regret_budgets_usd: Sequence[float]
    domains: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Part:
    """A piece of a bar: its width in percent, its color, and what it says when pointed at."""

    width: float
    color: int
    title: str


@dataclass(frozen=True)
class Bar:
    """A bar of several pieces, with what is written before and after it."""

    name: str
    parts: list[Part]
    value: str = ""


@dataclass(frozen=True)
class Readout:
    """What is told of a point of a curve: its place, rows (router, score, spend), who is asked, and its line."""

    x: float
    y: float
    title: str
    rows: list[tuple[str, str, str]]
    asked: list[tuple[str, int, str, float]]
    chosen: bool = False
    color: int = 0
    line: int = 0


def page(text: Sequence[str], decision: Decision, pictures: Pictures) -> str:
    """The HTML; `text` is the lines of `report.md`."""
    first, *rest = sections(text)
    places = [i for i, section in enumerate(rest) if section.level == 1]  # of the appendix
    body, further = (rest[: places[0]], rest[places[0] + 1 :]) if places else (rest, [])
    learning = next((section for section in rest if learning_line(section)), None)
    chart, lines, marks = _curve(pictures)
    return render(
        "report.html",
        first=first,
        decision=decision,
        tiles=_tiles(decision),
        warnings=Section("", 2, [line[2:] for line in first.lines if line.startswith("- **Warning")]),
        chart=chart,
        lines=lines,
        marks=marks,
        readouts=_readouts(pictures, chart),
        subject=pictures.subject,
        asked=asked_bars(pictures),
        domains=_domain_bars(pictures),
        matches=[_match_bar(one) for one in pictures.matches],
        regrets=_regret_bars(pictures),
        experts=legend(pictures),
        learning=learning,
        learned=learning and learning_line(learning),
        body=body,
        further=further,
    )


def render(name: str, **given: object) -> str:
    return _environment.get_template(name).render(**given, n_colors=COLORS)


def _tiles(decision: Decision) -> list[tuple[str, str, str]]:
    """The figures that one looks for first: title, value, and what it is beside."""
    first, *others = decision.rows
    half = "" if np.isnan(first.score.half) else f"± {first.score.half:.3f}, "
    tiles = [
        ("Deploy", decision.deploy, f"{dollars(decision.budget_usd_per_1000_queries)} per 1,000 queries"),
        ("Score", f"{first.score.mean:.3f}", f"{half}on {decision.queries['test']:,} test queries"),
        ("Spent", dollars(first.usd_per_1000_queries), "per 1,000 test queries"),
    ]
    for row in others:
        if row.name.startswith("always ") and row.lead is not None and row.saved is not None:
            less = "saved" if row.saved.mean >= 0 else "more"
            value = f"{100 * abs(row.saved.mean):.0f} % {less}"
            tiles.append(("Cost", value, f"against {row.name}, whose score is {row.score.mean:.3f}"))
    return [*tiles, ("Training", *training_in_short(decision.training))]


def _colors(pictures: Pictures) -> list[int]:
    """The color of each expert: the most asked ones have their own."""
    calls = pictures.results[pictures.subject].calls.sum(axis=0)
    colors = np.full(len(calls), COLORS)
    colors[np.argsort(-calls, kind="stable")[:COLORS]] = np.arange(min(COLORS, len(calls)))
    return colors.tolist()


def legend(pictures: Pictures) -> list[tuple[str, int]]:
    """The names and colors of the experts that have their own color, and of all others together."""
    names = sorted(zip(_colors(pictures), pictures.table.experts, strict=True))
    own = [(name, color) for color, name in names if color < COLORS]
    return own + [(f"{len(names) - len(own)} others", COLORS)] * (len(names) > len(own))


def _curve(pictures: Pictures) -> tuple[Chart, list[Line], list[Mark]]:
    """The lines of all routers, the subject's first, of which the reader sees the most telling ones at first."""
    results, own = pictures.results, pictures.results[pictures.subject]
    alone = experts_alone(pictures.table, own)
    usd = np.array([1000 * one.cost_usd[0] for one in alone.values()])
    score = np.array([one.score[0] for one in alone.values()])
    first = compared(pictures)
    shown = np.concatenate([1000 * results[name].cost_usd for name in first] + [usd])
    chart = chart_of(shown.tolist(), np.concatenate([*(results[name].score for name in first), score]).tolist())
    lines = [
        chart.line(
            name,
            _line_color(i, name in first),
            (1000 * results[name].cost_usd).tolist(),
            results[name].score.tolist(),
            (1.96 * results[name].stderr).tolist() if i == 0 else (),
            dashed=i > 0,
            shown=name in first,
        )
        for i, name in enumerate(dict.fromkeys([*first, *results]))
    ]
    hull_usd, hull_score = mixtures(list(alone.values()), 0)
    mixed_usd = np.union1d(1000 * hull_usd, np.linspace(1000 * hull_usd[0], chart.x.high, SAMPLES))  # for a log axis
    mixed_score = np.interp(mixed_usd, 1000 * hull_usd, hull_score)
    mixed = chart.line("best mixtures of two experts", MIXTURE, mixed_usd.tolist(), mixed_score.tolist())
    return (
        chart,
        [*lines[: len(first)], mixed, *lines[len(first) :]],
        chart.marks(pictures.table.experts, usd.tolist(), score.tolist()),
    )


def compared(pictures: Pictures) -> list[str]:
    """The subject, what is deployed if that is a router, and the best router."""
    names = (pictures.subject, pictures.choice.name, pictures.choice.best_router)
    return list(dict.fromkeys(name for name in names if name is not None and name in pictures.results))


def _line_color(i: int, first: bool) -> int:
    return (0, BEST_ROUTER, 2)[min(i, 2)] if first else i % COLORS


def _readouts(pictures: Pictures, chart: Chart) -> list[Readout]:
    """What is told of each budget of the subject's curve."""
    results, own = pictures.results, pictures.results[pictures.subject]
    names = [name for name in dict.fromkeys([*compared(pictures), "best mixture"]) if name in results]
    readouts = []
    for g, usd in enumerate(pictures.budgets_usd):
        x, y = chart.place(1000 * float(own.cost_usd[g]), float(own.score[g]))
        rows = [
            (name, f"{one.score[g]:.3f} ± {1.96 * one.stderr[g]:.3f}", dollars(1000 * one.cost_usd[g]))
            for name, one in ((name, results[name]) for name in names)
        ]
        title = f"{dollars(1000 * usd)} per 1,000 queries"
        asked = asked_of(pictures.table.experts, own.calls[g], _colors(pictures))
        readouts.append(Readout(x, y, title, rows, asked, g == pictures.choice.place))
    return readouts


def asked_of(experts: Sequence[str], calls: np.ndarray, colors: Sequence[int]) -> list[tuple[str, int, str, float]]:
    """The experts asked most, from the most asked: name, color, share of the queries in words and in percent."""
    words = percents(calls)
    most = [k for k in np.argsort(-calls, kind="stable")[:COLORS] if calls[k] > 0]
    return [(experts[k], colors[k], words[k], round(min(100.0, 100 * float(calls[k])), 2)) for k in most]


def _stacked(experts: Sequence[str], calls: np.ndarray, colors: Sequence[int], whole: float) -> list[Part]:
    """The pieces of a bar, by color; experts without a color of their own are one piece."""
    words, parts = percents(calls), []
    for k in sorted(range(len(calls)), key=lambda k: (colors[k], k)):
        if colors[k] < COLORS and calls[k] > 0:
            parts.append(Part(round(100 * float(calls[k]) / whole, 3), colors[k], f"{experts[k]}: {words[k]}"))
    others = calls[np.asarray(colors) == COLORS]
    if others.sum() > 0:
        title = f"{len(others)} others: {percents(others.sum(keepdims=True))[0]}"
        parts.append(Part(round(100 * float(others.sum()) / whole, 3), COLORS, title))
    return parts


def asked_bars(pictures: Pictures) -> list[Bar]:
    """Who is asked at each budget; with several calls a query a bar is as long as these are many."""
    calls, colors = pictures.results[pictures.subject].calls, _colors(pictures)
    made = calls.sum(axis=1)
    several = bool(made.max() > 1 + 1e-9)
    return [
        Bar(
            dollars(1000 * usd),
            _stacked(pictures.table.experts, calls[g], colors, max(float(made.max()), 1.0)),
            f"{made[g]:.2f} calls" if several else "",
        )
        for g, usd in enumerate(pictures.budgets_usd)
    ]


def _domain_bars(pictures: Pictures) -> list[Bar]:
    colors = _colors(pictures)
    return [Bar(name, _stacked(pictures.table.experts, s, colors, 1.0)) for name, s in pictures.domains.items()]


def _match_bar(one: Match) -> Bar:
    """As long as the share of the expert's cost; none where its score may be had for less than was ever spent."""
    share = None if one.least else one.share
    parts = [] if share is None else [Part(round(min(100 * share, 100.0), 2), 0 if share <= 1 else DEARER, one.words())]
    return Bar(one.expert, parts, one.words())


def _regret_bars(pictures: Pictures) -> list[Bar]:
    """What is reached of hindsight's score, and what is lost by spending and by predicting."""
    shown = {pictures.subject: 0, "allocation regret": 2, "prediction regret": COLORS}
    widths = np.stack([np.maximum(pictures.regrets[name], 0.0) for name in shown])  # a loss may be negative
    widths = 100 * widths / max(float(widths.sum(axis=0).max()), 1e-9)
    bars = []
    for g, usd in enumerate(pictures.regret_budgets_usd):
        parts = [
            Part(round(float(widths[i, g]), 2), color, f"{name}: {pictures.regrets[name][g]:.3f}")
            for i, (name, color) in enumerate(shown.items())
        ]
        bars.append(Bar(dollars(1000 * usd), parts, f"{pictures.regrets['hindsight'][g]:.3f}"))
    return bars


@dataclass(frozen=True)
class Learned:
    """A learning curve: its axes, its line, and the numbers that it is drawn from (queries and score)."""

    chart: Chart
    line: Line
    points: list[tuple[float, float, str]]
    column: str
    x_ticks: list[tuple[float, str]]


def learning_line(section: Section) -> Learned | None:
    """The learning curve of a section of the report, drawn from its table; None where it has none."""
    for head, *rows in section.tables:
        if head[0] != LEARNING:
            continue
        n, score = [float(row[0].replace(",", "")) for row in rows], [float(row[1].split()[0]) for row in rows]
        chart = Chart(axis_of(n, True), axis_of(score, False))
        line = chart.line(head[1], 0, n, score)
        points = [(*chart.place(x, y), f"{row[0]}: {row[1]}") for x, y, row in zip(n, score, rows, strict=True)]
        return Learned(chart, line, points, head[1], [(chart.x.at(x), row[0]) for x, row in zip(n, rows, strict=True)])
    return None


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


_environment = Environment(
    loader=PackageLoader("agents.evaluation", "pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters["path"] = _path
