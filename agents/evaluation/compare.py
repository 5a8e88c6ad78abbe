"""Puts finished runs side by side: what each deploys, its score and cost on test, and the differences between them.

G budgets, m different test queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from agents.evaluation.curves import Chart, Line, Mark, chart_of
from agents.evaluation.decision import Interval, mean_interval, savings
from agents.evaluation.headline import dollars, percent_interval
from agents.evaluation.html_report import COLORS, Readout, asked_of, render
from agents.evaluation.markdown import table_head, table_line, to_html
from agents.evaluation.stored import ByQuery, Decided, Evaluation, Grid, Row, read_by_query, read_evaluation
from leeroo_env.cli import exit_code
from leeroo_env.errors import InputError
from leeroo_env.files import write_text
from leeroo_env.yaml_file import read_yaml

HEAD = ("run", "deploy", "budget", "score", "spent", "training added")


@dataclass(frozen=True)
class Options:
    """Puts finished runs side by side: what each deploys, its score and cost on test, what training added, and what it
    gains and saves against the first run, where both were measured on the same queries. Money is in dollars per 1,000
    queries, intervals are 95 %."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """the directories of two runs or more"""
    out: Path | None = None
    """a page of HTML to write, with all curves in one chart"""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: that tells it from the others.
        table_sha256: of the table; None: unknown.
        evaluation: its `evaluation.json`.
        decision: what it deploys.
        by_query: what is deployed, query by query; None: the run is of an earlier version.
    """

    name: str
    table_sha256: str | None
    evaluation: Evaluation
    decision: Decided
    by_query: ByQuery | None

    @property
    def deployed(self) -> Row:
        return self.decision.rows[0]

    @property
    def usd(self) -> float:
        """What that spends, dollars per 1,000 queries."""
        return self.deployed.usd_per_1000_queries

    @property
    def grid(self) -> Grid:
        """All budgets that were played."""
        return self.evaluation.all_budgets or self.evaluation

    @property
    def subject(self) -> str:
        """The router whose curve is drawn: what is deployed, or where that is an expert alone the run's own."""
        return self.decision.deploy if self.decision.deploy in self.grid.routers else next(iter(self.grid.routers))


@dataclass(frozen=True)
class Paired:
    """What a run gains in score, and saves of the cost, against the first; None: that one is free."""

    gained: Interval
    saved: Interval | None


def main(arguments: Sequence[str] | None = None, prog: str = "python -m agents.evaluation.compare") -> int:
    """The command line. Returns the exit code: 0, 2 for bad input."""
    return exit_code(lambda: run(tyro.cli(Options, prog=prog, args=arguments)), "nothing was changed")


def run(options: Options) -> int:
    """Prints the comparison, and writes its page. Raises InputError."""
    if len(options.runs) < 2:
        raise InputError("name two runs or more, to compare them")
    if options.out is not None and options.out.is_dir():
        raise InputError(f"--out {options.out}: is a directory; name a file of HTML")
    runs = [read_run(path, name) for path, name in zip(options.runs, names(options.runs), strict=True)]
    notes = [why_not_paired(runs[0], one) for one in runs[1:]]
    pairs = [None if note else paired(runs[0], one) for note, one in zip(notes, runs[1:], strict=True)]
    lines = table(runs, [None, *pairs])
    said = [note for note in notes if note]
    print(aligned(lines), *said, sep="\n")
    if options.out is not None:
        write_text(options.out, page(runs, lines, said))
        print(f"page: {options.out}")
    return 0


def names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for n in range(1, max(map(len, parts)) + 1):
        short = ["/".join(part[-n:]) for part in parts]
        if len(set(short)) == len(short):
            return short
    raise InputError(f"{paths[0]}: a run is named twice")


def read_run(path: Path, name: str) -> Run:
    """Raises InputError where it is no finished run, or where its files are not as they were written."""
    if (path / "seeds.json").exists():
        raise InputError(f"{path}: holds several seeds; name the runs in it: {path / 'seed-*'}")
    if not (path / "evaluation.json").exists():
        raise InputError(f"{path}: {'not a finished run: has no evaluation.json' if path.is_dir() else 'no such run'}")
    evaluation = read_evaluation(path)
    if evaluation.decision is None or not evaluation.decision.rows:
        raise InputError(f"{path / 'evaluation.json'}: has no decision: an earlier version made it; train it anew")
    settings = read_yaml(path / "config.yaml") if (path / "config.yaml").exists() else {}
    sha256 = settings.get("table_sha256") if isinstance(settings, dict) else None
    return Run(name, sha256, evaluation, evaluation.decision, read_by_query(path))


def why_not_paired(first: Run, other: Run) -> str:
    """In one line why two runs were not measured on the same queries, or cannot be told apart from chance."""
    a, b = first.evaluation, other.evaluation
    if first.table_sha256 is None or first.table_sha256 != other.table_sha256 or a.split != b.split:
        kind = f"other tables ({a.table}, {b.table})" if a.table != b.table else "other tables, of the same name"
        if first.table_sha256 is None or other.table_sha256 is None:
            kind = "a config.yaml that does not say which table it was"
        return f"no differences between {first.name} and {other.name}: {kind}"
    if first.by_query is None or other.by_query is None:
        old = first if first.by_query is None else other
        return f"no differences between {first.name} and {other.name}: {old.name} is of an earlier version"
    if not first.by_query.is_paired_with(other.by_query):
        what = f"other seeds ({a.seed}, {b.seed})" if a.seed != b.seed else "other episodes"
        what = f"other horizons ({a.horizon}, {b.horizon})" if a.horizon != b.horizon else what
        return f"no differences between {first.name} and {other.name}: {what}, so that other test queries were asked"
    return ""


def paired(first: Run, other: Run) -> Paired:
    """What `other` gains and saves against the first run, each at the budget that it deploys."""
    one, two = first.by_query, other.by_query
    assert one is not None and two is not None
    rows = one.each(one.rows)
    return Paired(
        mean_interval(two.each(two.score - one.score), rows),
        savings(two.each(two.paid_usd), one.each(one.paid_usd), rows),
    )


def table(runs: Sequence[Run], pairs: Sequence[Paired | None]) -> list[list[str]]:
    """The cells of the comparison, the head first."""
    more = [f"gained on {runs[0].name}", "cost saved"] if any(pairs) else []
    lines = [[*HEAD, *more]]
    for one, pair in zip(runs, pairs, strict=True):
        row, decision = one.deployed, one.decision
        cells = [one.name, decision.deploy, dollars(decision.budget_usd_per_1000_queries)]
        half = "" if row.score.low is None else f" ± {row.score.mean - row.score.low:.3f}"
        cells += [f"{row.score.mean:.3f}{half}", dollars(one.usd), _added(decision)]
        if more:
            cells += ["", ""] if pair is None else _differences(pair)
        lines.append(cells)
    return lines


def _added(decision: Decided) -> str:
    gain = decision.training.gain
    if gain is None:
        return "nothing" if decision.training.algorithm else "not trained"
    half = "" if gain.low is None else f" ± {100 * (gain.mean - gain.low):.2f}"
    return f"{100 * gain.mean:+.2f}{half} points"


def _differences(pair: Paired) -> list[str]:
    saved = "it is free" if pair.saved is None else percent_interval(pair.saved)
    return [f"{pair.gained.mean:+.3f} ± {pair.gained.half:.3f}", saved]


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """The cells in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def page(runs: Sequence[Run], lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """The HTML of the comparison, which needs nothing from elsewhere."""
    chart, curves, readouts, marks = _curves(runs)
    markdown = [*table_head(lines[0]), *map(table_line, lines[1:])]
    return render(
        "compare.html",
        table=to_html(markdown),
        notes=notes,
        chart=chart,
        lines=curves,
        readouts=readouts,
        marks=marks,
        tables=list(dict.fromkeys(run.evaluation.table for run in runs)),
    )


def _curves(runs: Sequence[Run]) -> tuple[Chart, list[Line], list[Readout], list[Mark]]:
    """The curve of each run's router, what is told of its points, and marks for the experts that are deployed alone."""
    curves = [one.grid.routers[one.subject] for one in runs]
    experts = list(dict.fromkeys(name for one in runs for name in one.evaluation.experts))
    color_of = {name: min(i, COLORS) for i, name in enumerate(experts)}
    usd = [[1000 * cost for cost in curve.cost_usd] for curve in curves]
    alone = [one for one in runs if one.subject != one.decision.deploy and not np.isnan(one.usd)]
    shown_usd = [x for each in usd for x in each] + [one.usd for one in alone]
    chart = chart_of(
        shown_usd, [y for curve in curves for y in curve.score] + [one.deployed.score.mean for one in alone]
    )
    lines, readouts = [], []
    for i, (one, curve) in enumerate(zip(runs, curves, strict=True)):
        color = i % COLORS
        lines.append(chart.line(f"{one.name}: {one.subject}", color, usd[i], curve.score))
        near = np.abs(1000 * np.array(one.grid.budgets_usd) - one.decision.budget_usd_per_1000_queries).argmin()
        for g, budget in enumerate(one.grid.budgets_usd):
            half = f" ± {1.96 * curve.stderr[g]:.3f}" if curve.stderr else ""
            names = one.evaluation.experts
            calls = np.array(curve.calls[g]) if curve.calls else np.zeros(len(names))
            readouts.append(
                Readout(
                    *chart.place(usd[i][g], curve.score[g]),
                    title=f"{one.name}, {dollars(1000 * budget)}",
                    rows=[(one.subject, f"{curve.score[g]:.3f}{half}", dollars(usd[i][g]))],
                    asked=asked_of(names, calls, [color_of[name] for name in names]),
                    chosen=i == 0 and g == near,
                    color=color,
                    line=i,
                )
            )
    marks = []
    for one in alone:
        name, score = f"{one.name}: {one.decision.deploy}", one.deployed.score.mean
        marks.append(replace(chart.marks([name], [one.usd], [score])[0], labelled=False))
    return chart, lines, readouts, marks


if __name__ == "__main__":
    raise SystemExit(main())
