"""Measures the decision on test, and says it in words: the beginning of report.md and "decision" of evaluation.json.

n queries played at a budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from agents.evaluation.decision import (
    AGENT,
    LEAST_GAIN,
    RULE,
    WORSE,
    CallsChoice,
    Choice,
    Interval,
    experts_alone,
    mean_interval,
    reference_experts,
    savings,
)
from agents.evaluation.evaluate import Result
from agents.evaluation.markdown import table_head, table_line
from leeroo_env.table import ExpertTable

NOT_MATCHED = (
    " At no budget does it score as much on val as the best expert: where every point counts, always ask that one."
)
FEW = 300  # queries of val or test: with fewer, an interval of the score is wider than 5 points to either side


@dataclass(frozen=True)
class Training:
    """What training did.

    Attributes:
        algorithm: that trained; None: nothing was trained.
        start: what the policy is before training, or where it comes from if nothing was trained, in words.
        steps: trained.
        kept_step: at which the kept policy was; 0 is its start.
        gain: in test score of the kept policy over its start, mean over the budgets; None where they are the same.
        calls: why several calls a query were kept or one; None: only one of the two was trained.
    """

    algorithm: str | None
    start: str = ""
    steps: int = 0
    kept_step: int = 0
    gain: Interval | None = None
    calls: CallsChoice | None = None

    @property
    def brought_nothing(self) -> bool:
        """Whether an algorithm trained, and gained nothing, or no more than chance may do."""
        return self.algorithm is not None and not (self.gain is not None and self.gain.low > 0)


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a router or an expert alone, on test.

    Attributes:
        name: its name, as in the tables.
        score: mean per query.
        usd_per_1000_queries: spent.
        lead: of what is deployed over it, in score on the same queries; None for itself.
        saved: the share of its cost that is saved by what is deployed; None for itself, and where it is free.
    """

    name: str
    score: Interval
    usd_per_1000_queries: float
    lead: Interval | None
    saved: Interval | None


@dataclass(frozen=True)
class Decision:
    """What to deploy, and how it did on test.

    Attributes:
        deploy: the name of a router, or "always EXPERT".
        expert: the expert's name, where it is one alone.
        budget_usd_per_1000_queries: to be given; for one expert alone what it costs on val.
        as_good_as_best_expert: whether it is on val.
        score_on_val: which it was chosen by.
        rows: what is deployed, then what it is compared with.
        training: what was trained.
        queries: in each split.
        horizon: queries an episode in training; in "val" and "test" fewer where the split holds no more.
    """

    deploy: str
    expert: str | None
    budget_usd_per_1000_queries: float
    as_good_as_best_expert: bool
    score_on_val: float
    rows: tuple[Row, ...]
    training: Training
    queries: dict[str, int]
    horizon: dict[str, int]

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)

    def as_json(self) -> dict[str, Any]:
        """For evaluation.json; NaN becomes null."""
        return _without_nan(asdict(self))


def measure(
    table: ExpertTable, choice: Choice, results: Mapping[str, Result], training: Training, horizon: dict[str, int]
) -> Decision:
    """The decision, with its numbers on test.

    Args:
        table: of the results.
        choice: as made on val.
        results: on test, by router, at the budgets that the choice was made from.
        training: what was trained.
        horizon: as `Decision.horizon`.
    """
    alone = experts_alone(table, next(iter(results.values())))
    best, most_expensive = (list(alone)[k] for k in reference_experts(table))
    options = {**results, **alone}
    own = [AGENT] * (AGENT in results)
    own += [name for name in results if name.startswith(f"{AGENT} ") and results[name] is not results[AGENT]]
    named = [choice.name, most_expensive, best, *own, choice.best_router]
    rows = [
        _row(name, options[name], options[choice.name], choice.place, first=i == 0)
        for i, name in enumerate(dict.fromkeys(name for name in named if name))
    ]
    return Decision(
        deploy=choice.name,
        expert=None if choice.expert is None else table.experts[choice.expert],
        budget_usd_per_1000_queries=1000 * choice.budget_usd,
        as_good_as_best_expert=choice.matches,
        score_on_val=choice.score,
        rows=tuple(rows),
        training=training,
        queries={split: len(table.rows(split)) for split in ("train", "val", "test")},
        horizon=horizon,
    )


def _row(name: str, other: Result, deployed: Result, place: int, first: bool) -> Row:
    rows = other.rows[place]
    return Row(
        name=name,
        score=mean_interval(other.scored[place], rows),
        usd_per_1000_queries=1000 * float(other.cost_usd[place]),
        lead=None if first else mean_interval(deployed.scored[place] - other.scored[place], rows),
        saved=None if first else savings(deployed.paid_usd[place], other.paid_usd[place], rows),
    )


def headline(decision: Decision, table: ExpertTable, command: str) -> list[str]:
    """The lines that report.md begins with.

    Args:
        decision: to say.
        table: for the names of the experts.
        command: that makes a run directory with a router, NAME standing for its name.
    """
    best, most_expensive = (f"always {table.experts[k]}" for k in reference_experts(table))
    roles = {best: "the best expert", most_expensive: "the most expensive expert"}
    if best == most_expensive:
        roles = {best: "the best and most expensive expert"}
    nothing = f" {_training(decision.training)}" if decision.training.brought_nothing else ""
    return [
        _deploy(decision, command) + nothing,
        "",
        *table_head(["on the test queries", "score", "dollars per 1,000 queries", "score gained", "cost saved"]),
        *(_line(row, roles) for row in decision.rows),
        "",
        "Intervals are 95 %, for other queries of the same kind; gains and savings are on the same queries. A score of "
        "1 is every answer right; a point is 0.01.",
        "",
        *_sentences(decision, roles),
        "",
        f"How it was chosen: {RULE}",
    ]


def _deploy(decision: Decision, command: str) -> str:
    """The first sentences."""
    usd = dollars(decision.budget_usd_per_1000_queries)
    if decision.expert is not None:
        return (
            f"**Deploy no router: always ask {decision.expert}, at {usd} per 1,000 queries.** On val no router is "
            "clearly better for the same money, or as good for less."
        )
    kept = "" if decision.as_good_as_best_expert else NOT_MATCHED
    if decision.deploy == AGENT:
        return (
            f"**Deploy the agent with a budget of {usd} per 1,000 queries**: "
            f"`Orchestrator.load` of this directory, with `remaining_usd` of {usd} for every 1,000 `remaining_queries`."
            f"{kept}"
        )
    made = command.replace("NAME", f'"{decision.deploy}"')
    how = "It is in this directory, for `Orchestrator.load`" if decision.training.algorithm is None else f"`{made}`"
    return (
        f"**Deploy the router {decision.deploy} with a budget of {usd} per 1,000 queries**, not the agent. {how}"
        f"{'' if decision.training.algorithm is None else ' makes a directory for `Orchestrator.load`'}, with "
        f"`remaining_usd` of {usd} for every 1,000 `remaining_queries`.{kept}"
    )


def _line(row: Row, roles: Mapping[str, str]) -> str:
    name = f"{row.name} ({roles[row.name]})" if row.name in roles else row.name
    return table_line(
        [
            f"**{name}**" if row.lead is None else name,
            f"{row.score.mean:.3f} ± {_half(row.score)}",
            dollars(row.usd_per_1000_queries),
            "" if row.lead is None else f"{row.lead.mean:+.3f} ± {_half(row.lead)}",
            "" if row.saved is None else percent_interval(row.saved),
        ]
    )


def _sentences(decision: Decision, roles: Mapping[str, str]) -> list[str]:
    """What it saves, what training added, on how many queries, each a line of a list."""
    lines = [_saving(row, roles[row.name]) for row in decision.rows if row.name in roles and row.lead is not None]
    lines += [] if decision.training.brought_nothing else [_training(decision.training)]
    lines += [_calls(decision.training.calls), _queries(decision)]
    return [f"- {line}" for line in [*lines, *_warnings(decision)] if line]


def _saving(row: Row, role: str) -> str:
    name = row.name.removeprefix("always ")
    lead = row.lead
    assert lead is not None
    if math.isnan(lead.low):
        clear = "too few queries to say how sure that is"
    elif lead.low > 0:
        clear = "clearly more"
    elif lead.high < 0:
        clear = "clearly less"
    else:
        clear = "no clear difference"
    score = (
        f"scores {100 * lead.mean:+.1f} points (95 %: from {100 * lead.low:+.1f} to {100 * lead.high:+.1f}; {clear})"
    )
    if row.saved is None:
        return f"Against always asking {name}, {role}, which is free, it {score}."
    saved = row.saved
    words = f"saves {_percent(saved.mean)} of the cost (95 %: from {_percent(saved.low)} to {_percent(saved.high)})"
    if saved.mean < 0:
        words = f"costs {_percent(-saved.mean)} more (95 %: from {_percent(-saved.high)} to {_percent(-saved.low)})"
    return f"Against always asking {name}, {role}, it {words} and {score}."


def _training(training: Training) -> str:
    if training.algorithm is None:
        return f"Reinforcement learning trained nothing here: {training.start}."
    name = algorithm_name(training.algorithm)
    if training.kept_step == 0:
        return (
            f"{name} added nothing to the agent's start, {training.start}: after {training.steps:,} steps nothing was "
            "clearly better on val, and the start was kept."
        )
    gain = training.gain
    assert gain is not None
    clear = "" if not gain.low <= 0 <= gain.high else ": no more than chance may do"
    return (
        f"{name} added {100 * gain.mean:+.2f} points (95 %: from {100 * gain.low:+.2f} to {100 * gain.high:+.2f}) to "
        f"the agent's start, {training.start}, mean over the budgets{clear}; kept is step {training.kept_step:,} of "
        f"{training.steps:,}."
    )


def training_in_short(training: Training) -> tuple[str, str]:
    """What training added, and beside that to what."""
    if training.algorithm is None:
        return "none", training.start
    name = algorithm_name(training.algorithm)
    if training.gain is None:
        return "added nothing", f"{name}, to {training.start}"
    gain = training.gain
    interval = f"95 %: from {100 * gain.low:+.2f} to {100 * gain.high:+.2f}"
    return f"{100 * gain.mean:+.2f} points", f"{name}, to {training.start} ({interval})"


def algorithm_name(algorithm: str) -> str:
    """As in a sentence."""
    return algorithm.upper().replace("_", " ")


def _calls(calls: CallsChoice | None) -> str:
    if calls is None:
        return ""
    kept = "Several calls a query were kept, not one" if calls.several else "One call a query was kept, not several"
    who = (
        f"up to {calls.max_calls} calls score" if calls.trained else f"the plan of up to {calls.max_calls} calls scores"
    )
    at = f"{100 * calls.worst_gain:+.2f} ± {100 * calls.worst_stderr:.2f} points"
    untrained = "" if calls.trained else " So they were not trained."
    return (
        f"{kept}: on train and val, {who} {100 * calls.gain:+.2f} ± {100 * calls.stderr:.2f} points against "
        f"{'one' if calls.trained else 'that of one'}, mean over the budgets (± one standard error), and where several "
        f"do least well, at {dollars(calls.worst_budget_usd_per_1000_queries)} per 1,000 queries, {at}. Several are "
        f"kept where they gain at least {100 * LEAST_GAIN:g} points in the mean, and at no budget lose more than "
        f"{WORSE:g} standard errors.{untrained}"
    )


def _queries(decision: Decision) -> str:
    n = decision.queries
    return f"Fitted to {n['train']:,} queries (train), chosen on {n['val']:,} (val), measured on {n['test']:,} (test)."


def _warnings(decision: Decision) -> list[str]:
    lines, n = [], decision.queries
    if few := [f"{split} has {n[split]:,}" for split in ("val", "test") if n[split] < FEW]:
        half = max(row.score.half for row in decision.rows)
        lines.append(
            f"**Warning: few queries.** {' and '.join(few).capitalize()}, so that scores are known to ± "
            f"{100 * half:.0f} points only, and the choice may be chance. Collect more: {FEW} in each at least, which "
            "are 3,000 altogether where the splits are drawn."
        )
    if cut := [f"{split} {h}" for split, h in decision.horizon.items() if h < decision.horizon["train"]]:
        lines.append(
            f"**Warning: shorter episodes.** The agent was trained in episodes of {decision.horizon['train']} queries; "
            f"{' and '.join(cut)} here, since these splits hold no more. Long streams are not measured."
        )
    return lines


def dollars(usd: float) -> str:
    """Three digits, without an exponent unless it is tiny."""
    if usd == 0 or not math.isfinite(usd):
        return f"${usd:g}"
    if abs(usd) < 1e-6:
        return f"${usd:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(usd))))
    return f"${usd:,.{digits}f}"


def percent_interval(share: Interval) -> str:
    return f"{_percent(share.mean)} ({_percent(share.low)} to {_percent(share.high)})"


def _percent(share: float) -> str:
    """With a decimal where whole numbers would hide the difference from all or nothing."""
    percent = 100 * share
    if math.isnan(percent):
        return "?"
    return f"{percent:.1f} %" if 0 < abs(percent) < 10 or 90 < abs(percent) < 100 else f"{percent:.0f} %"


def _half(interval: Interval) -> str:
    return "?" if np.isnan(interval.half) else f"{interval.half:.3f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
