"""Writes the report of a run: `evaluation.json`, `curve.png`, `report.md`, which begins with what to deploy, and the
same as a page, `report.html`.

G budgets, K experts, N rows of the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from agents.estimators.base import Estimates
from agents.evaluation.appendix import appendix, metrics_of, percents, regrets, rows_of, shares_by_domain
from agents.evaluation.bounds import estimated_bound, hindsight_bound
from agents.evaluation.decision import AGENT, Choice, choose, experts_alone
from agents.evaluation.evaluate import QUERIES, Result, episodes_for, evaluate, summary
from agents.evaluation.headline import Decision, Training, dollars, headline, measure
from agents.evaluation.html_report import Pictures, page
from agents.evaluation.matching import Match, matches
from agents.evaluation.plots import draw_curve, save_png
from agents.evaluation.stored import ByQuery, write_by_query
from agents.progress import Bars, silent
from agents.routers import Router
from leeroo_env.dynamics import Rules, budget_grid
from leeroo_env.files import write_atomically, write_json, write_text

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the highest mean cost: budgets that one would deploy, beside the grid


@dataclass(frozen=True)
class Budgets:
    """The budgets of a report, dollars a query.

    Attributes:
        main: [G], rising: those of the user, else a geometric grid. The mean score is that over these.
        further: shares of the most expensive expert's mean cost, and the grid where the user gave budgets.
        fixed: whether the user gave the main ones, so that only these may be deployed.
    """

    main: list[float]
    further: list[float]
    fixed: bool = False

    @property
    def all(self) -> list[float]:
        return sorted([*self.main, *self.further])

    @property
    def to_choose(self) -> list[int]:
        """The places in `all` of the budgets that may be deployed."""
        return [i for i, usd in enumerate(self.all) if usd in self.main or not self.fixed]


def report_budgets(rules: Rules, given: Sequence[float] = ()) -> Budgets:
    """The budgets of a report: of those `given` by the user one number stands for itself, two for a grid between."""
    grid, cost_usd = budget_grid(rules), rules.cost_scale.mean_usd
    high, low = float(cost_usd.max()), float(cost_usd.min())
    shares = [share * high for share in SHARES if share * high >= low * (1 - 1e-9) and high > 0]
    main = grid
    if given:
        main = np.geomspace(min(given), max(given), len(grid) if len(set(given)) > 1 else 1).tolist()
        shares += grid
    further = [usd for usd in sorted(set(shares)) if not np.isclose(usd, main, rtol=1e-6, atol=0).any()]
    return Budgets(main, further, bool(given))


@dataclass(frozen=True)
class Played:
    """Routers on one split.

    Attributes:
        rules: of the episodes.
        split: its name.
        budgets: those played.
        seed: of the episodes.
        queries: asked at a budget, unless `evaluate` plays fewer where it is not told.
        all: results at `budgets.all`, by router.
    """

    rules: Rules
    split: str
    budgets: Budgets
    seed: int = 0
    queries: int = QUERIES
    all: dict[str, Result] = field(default_factory=dict)

    @cached_property
    def main(self) -> dict[str, Result]:
        """Results at `budgets.main`, by router."""
        places = [self.budgets.all.index(usd) for usd in self.budgets.main]
        return {name: result.at(places) for name, result in self.all.items()}

    def beside(self, other: Played) -> Played:
        """The routers of both, on the same episodes."""
        return replace(self, all={**self.all, **other.all})


def play(routers: Mapping[str, Router], episodes: Played, bars: Bars = silent) -> Played:
    """The results of the routers alone on the same episodes as those that have been played."""
    rules, budgets, seed = episodes.rules, episodes.budgets.all, episodes.seed
    played, number = replace(episodes, all={}), episodes_for(rules, episodes.queries)
    steps = {name: rules.horizon * router.max_calls for name, router in routers.items()}
    with bars(f"evaluating on {episodes.split}", sum(steps.values())) as bar:
        for i, (name, router) in enumerate(routers.items(), start=1):
            played.all[name] = evaluate(router, rules, budgets, number, seed, bar.update)
            bar.update(sum(list(steps.values())[:i]) - bar.n)  # with several calls, episodes may end early
    return played


@dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
        subject: the name of the agent, or of the router that the run directory holds.
        routers: by name, the subject first.
        val: them on val, which the choice is made on.
        test: them on test.
        estimates: the agent's, of every row of the table.
        training: what was trained.
        horizon: queries an episode in training, and on val and test.
        command: that makes a run directory with a router, NAME standing for its name.
        notes: the last paragraph.
        data: what is said of the data, in lines.
    """

    subject: str
    routers: Mapping[str, Router]
    val: Played
    test: Played
    estimates: Estimates
    training: Training
    horizon: dict[str, int]
    command: str
    notes: str
    data: Sequence[str] = ()

    def choice(self) -> Choice:
        budgets = self.val.budgets
        return choose(self.val.rules.table, budgets.all, self.val.all, budgets.to_choose)


def write_report(run_dir: Path, report: Report) -> Decision:
    """Writes the files of an evaluation."""
    test, estimates = report.test, report.estimates
    rules, budgets, seed, table = test.rules, test.budgets.main, test.seed, test.rules.table
    choice = report.choice()
    decision = measure(table, choice, test.all, report.training, report.horizon)
    bounds = {
        "hindsight": hindsight_bound(rules, budgets, seed=seed),
        "hindsight on estimates": estimated_bound(rules, estimates.score, estimates.cost_usd, budgets, seed=seed),
    }
    numbers = {name: metrics_of(rules, test.split, result) for name, result in test.main.items()}
    text = [
        *_body(report, choice, decision),
        "",
        *appendix(
            rules, test.split, seed, budgets, report.subject, report.routers, test.main, bounds, numbers, estimates
        ),
        "",
        report.notes,
    ]
    figure = draw_curve(table, test.split, test.all, report.subject, choice.best_router)
    write_atomically(run_dir / "curve.png", lambda path: save_png(figure, path))
    write_text(run_dir / "report.md", "\n".join(text) + "\n")
    write_text(run_dir / "report.html", page(text, decision, _pictures(report, choice, bounds)))
    deployed = {**test.all, **experts_alone(table, test.all[report.subject])}[choice.name]
    write_by_query(run_dir, ByQuery.of(deployed, choice.place))
    write_json(
        run_dir / "evaluation.json",
        {
            **summary(rules, test.split, seed, budgets, {**test.main, **bounds}),
            "metrics": _without_nan(numbers),
            "all_budgets": summary(rules, test.split, seed, test.budgets.all, test.all),
            "decision": decision.as_json(),
        },
    )
    return decision


def _pictures(report: Report, choice: Choice, bounds: Mapping[str, Result]) -> Pictures:
    test, subject = report.test, report.subject
    table, own = test.rules.table, test.all[subject]
    return Pictures(
        table=table,
        subject=subject,
        budgets_usd=test.budgets.all,
        results=test.all,
        choice=choice,
        matches=matches(own, experts_alone(table, own)),
        regrets=regrets(subject, test.main[subject], bounds),
        regret_budgets_usd=test.budgets.main,
        domains=shares_by_domain(test.rules, test.main[subject]),
    )


def _body(report: Report, choice: Choice, decision: Decision) -> list[str]:
    test, subject = report.test, report.subject
    rules, table, own = test.rules, test.rules.table, test.all[report.subject]
    usd = [dollars(1000 * b) for b in test.budgets.all]
    return [
        f"# {table.name}: what to deploy",
        "",
        *headline(decision, table, report.command),
        "",
        "![score over dollars per 1,000 queries](curve.png)",
        "",
        "## What each budget buys",
        "",
        *_by_budget(report, choice),
        "",
        f"## What the {subject if subject == AGENT else 'router'} pays for each expert's score",
        "",
        *_what_money_buys(matches(own, experts_alone(table, own))),
        "",
        "## Which experts are asked",
        "",
        f"Share of the calls of the {subject if subject == AGENT else f'router {subject}'}, by budget in dollars per "
        "1,000 queries.",
        "",
        rows_of(["expert", *usd], dict(zip(table.experts, own.calls.T, strict=True)), percents),
        "",
        *_calls(rules, own),
        f"Calls cut off, which cost more than what was left: {100 * test.main[subject].cut_off.mean():.2f} per 100 "
        "queries.",
        "",
        *report.data,
        f"The table: {table.info.description or table.name}; {len(table.experts)} experts.",
    ]


def _by_budget(report: Report, choice: Choice) -> list[str]:
    """Score by budget of the agent, the best router and the best mixture."""
    test, subject = report.test, report.subject
    shown = [
        name for name in dict.fromkeys((subject, choice.name, choice.best_router, "best mixture")) if name in test.all
    ]
    high = float(test.rules.cost_scale.mean_usd.max())
    rows = {}
    for g, usd in enumerate(test.budgets.all):
        share = "" if high == 0 else f"{100 * usd / high:.0f} %"
        scores = [f"{test.all[name].score[g]:.3f} ± {1.96 * test.all[name].stderr[g]:.3f}" for name in shown]
        here = g == choice.place and choice.expert is None
        name = dollars(1000 * usd)
        rows[f"**{name}**" if here else name] = [share, dollars(1000 * test.all[subject].cost_usd[g]), *scores]
    return [
        f"Mean score per {test.split} query in episodes of {test.rules.horizon}, ± 95 %, at budgets in dollars per "
        "1,000 queries"
        + (", the deployed one in bold" if choice.expert is None else "")
        + ". The best router is the one that was best on val; the best mixture is a lottery between two experts.",
        "",
        rows_of(["budget", "of the most expensive expert", f"spent by {subject}", *shown], rows, lambda row: row),
    ]


def _what_money_buys(found: Sequence[Match]) -> list[str]:
    """For each expert, what is spent for the same score."""
    cells = {one.expert: [f"{one.score:.3f}", dollars(1000 * one.cost_usd), one.words()] for one in found}
    return [
        "What each expert scores and costs if it answers every query of these episodes, and what is spent for the same "
        "score (interpolated between the budgets above), in dollars per 1,000 queries.",
        "",
        rows_of(["expert", "score", "dollars", "the same score"], cells, lambda row: row),
    ]


def _calls(rules: Rules, own: Result) -> list[str]:
    """How many experts are asked about a query, where it may be several."""
    if rules.max_calls == 1:
        return []
    made = ", ".join(f"{calls:.2f}" for calls in own.calls.sum(axis=1))
    return [f"Calls per query, of at most {rules.max_calls}, by budget: {made}.", ""]


def _without_nan(numbers: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """JSON has no nan: null stands for it."""
    return {name: {k: None if np.isnan(x) else x for k, x in row.items()} for name, row in numbers.items()}


def show(decision: Decision) -> str:
    """The decision in a few lines, for the terminal."""
    first = decision.rows[0]
    lines = [
        f"deploy: {decision.deploy}, {dollars(decision.budget_usd_per_1000_queries)} per 1,000 queries; "
        f"score {first.score.mean:.3f} ± {first.score.half:.3f} on test"
    ]
    for row in decision.rows[1:]:
        assert row.lead is not None
        saved = ""
        if row.saved is not None:
            saved = f", {100 * abs(row.saved.mean):.0f} % {'cheaper' if row.saved.mean >= 0 else 'more expensive'}"
        lines.append(f"  against {row.name}: {row.lead.mean:+.3f} ± {row.lead.half:.3f}{saved}")
    return "\n".join(lines)
