"""Gathers what the page shows: money by key and expert, savings, latency, breakers and the last decisions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection

from agents.server import journal
from agents.server.chart import Chart, chart_of
from agents.server.drift import Drift
from agents.server.journal import Recorded
from agents.server.money import Account, KeyInfo, reports
from agents.server.money import keys as key_rows
from agents.server.shadow import Comparison, Pair, comparisons, pairs_of

HOURS = (1, 24, 168)
STEPS_S = {1: 300, 24: 3_600, 168: 3_600}  # of the bars of the chart
DECISIONS = 50
ESTIMATES = 20  # of a decision, from the best
LIMITS = 60
DRIFTS = 30
SAMPLE = 5_000  # requests whose latencies are ranked
COLORS = 8
OTHERS = "other experts"


@dataclass(frozen=True)
class Limit:
    """A limit and what is spent: in its own period, and in the time that the page shows."""

    account: Account
    recent_micro: int
    revoked: bool


@dataclass(frozen=True)
class ExpertRow:
    """What one expert did.

    Attributes:
        name: of the expert.
        color: number of its colour.
        requests: answered with its answer.
        request_share: of all answered requests.
        micro_usd: charged to keys for it.
        money_share: of all that was charged.
        mean_micro: of a call that was answered.
        mean_s: of the same.
        failures: calls that failed.
        is_open: whether it is left alone now; None: it is not in the pool any more.
    """

    name: str
    color: int
    requests: int
    request_share: float
    micro_usd: int
    money_share: float
    mean_micro: float | None
    mean_s: float | None
    failures: int
    is_open: bool | None


@dataclass(frozen=True)
class PolicyRow:
    """What one policy brought.

    Attributes:
        name: of its run.
        requests: answered ones about which it decided.
        mean_micro: of them.
        mean_s: of them.
        rated: the number of them that users rated.
        feedback: their mean rating.
        error: the standard error of that; None for fewer than two.
    """

    name: str
    requests: int
    mean_micro: float
    mean_s: float
    rated: int
    feedback: float | None
    error: float | None


@dataclass(frozen=True)
class Row:
    """A decision, for people; `pair` is what two policies decided, where there were two."""

    recorded: Recorded
    key: str
    pair: Pair | None
    estimates: list[tuple[str, float | None, float | None]]
    more_estimates: int


@dataclass(frozen=True)
class Overview:
    """All that the page shows; money in micro-dollars, `now` in Unix seconds.

    `dearest_micro` is what always asking the most expensive expert would have cost, by estimates, and `answered_micro`
    what was paid for the same requests.
    """

    now: float
    hours: int
    today_micro: int
    spent_micro: int
    lost_micro: int
    requests: int
    errors: int
    answered_micro: int
    dearest_micro: int
    median_s: float | None
    p99_s: float | None
    limits: list[Limit]
    more_limits: int
    chart: Chart
    colors: dict[str, int]
    experts: list[ExpertRow]
    decisions: list[Row]
    drifts: list[Drift]
    more_drifts: int
    policies: list[PolicyRow]
    comparisons: list[Comparison]


def overview(
    connection: Connection, is_open: Mapping[str, bool], hours: int, now: float, drifts: Sequence[Drift] = ()
) -> Overview:
    """Reads everything in one transaction.

    Args:
        is_open: the experts of the pool, in its order, and whether they are left alone now.
        hours: one of HOURS.
        drifts: how experts have changed.
    """
    shown = [one for one in drifts if one.verdict != "no sign"][:DRIFTS]
    step_s = STEPS_S[hours]
    starts = [float(now // step_s * step_s - i * step_s) for i in reversed(range(hours * 3_600 // step_s))]
    since = starts[0]
    totals = journal.totals(connection, since)
    answered = [one for one in totals if one.expert]
    outcomes = reports.by_outcome(connection, since)
    spent_by_expert = Counter[str]()
    for one in outcomes:
        spent_by_expert[one.expert] += one.micro_usd
    colors = _colors(list(is_open), spent_by_expert)
    micro = Counter[tuple[int, str]]()
    for number, expert, amount in reports.over_time(connection, starts):
        micro[number, expert if colors.get(expert, COLORS) < COLORS else OTHERS] += amount
    colored = [name for name, color in colors.items() if color < COLORS]
    latencies = journal.latencies(connection, since, SAMPLE)
    infos = key_rows.list_keys(connection)
    limits = _limits(connection, infos, since, now)
    today = reports.spending(connection, now // 86_400 * 86_400, "expert")
    return Overview(
        now=now,
        hours=hours,
        today_micro=sum(one.micro_usd for one in today),
        spent_micro=sum(spent_by_expert.values()),
        lost_micro=sum(one.lost_micro_usd for one in outcomes),
        requests=sum(one.requests for one in totals),
        errors=sum(one.requests for one in totals if one.status >= 400),
        answered_micro=sum(one.micro_usd for one in answered),
        dearest_micro=sum(one.dearest_micro_usd for one in answered),
        median_s=float(np.quantile(latencies, 0.5)) if latencies else None,
        p99_s=float(np.quantile(latencies, 0.99)) if latencies else None,
        limits=limits[:LIMITS],
        more_limits=max(0, len(limits) - LIMITS),
        chart=chart_of(starts, step_s, micro, [*colored, OTHERS]),
        colors=colors,
        experts=_experts(colors, is_open, answered, outcomes),
        decisions=_decisions(connection, infos),
        drifts=shown,
        more_drifts=len(drifts) - len(shown),
        policies=[_policy_row(one) for one in journal.by_policy(connection, since)],
        comparisons=comparisons(connection, since),
    )


def _colors(pool: list[str], spent: Counter[str]) -> dict[str, int]:
    """A colour of each expert, the same as long as the pool is; where there are too many, of those that cost most."""
    names = list(dict.fromkeys([*pool, *sorted(spent)]))
    colored = names
    if len(names) > COLORS:
        colored = sorted(names, key=lambda name: -spent[name])[: COLORS - 1]
    numbers = {name: i for i, name in enumerate(name for name in names if name in set(colored))}
    return {name: numbers.get(name, COLORS) for name in names}


def _limits(connection: Connection, infos: list[KeyInfo], since: float, now: float) -> list[Limit]:
    """The server's limit, then teams' and keys', the largest spenders first; no revoked keys that spent nothing."""
    recent = Counter[tuple[str, str]]()
    teams = {info.name: info.team for info in infos}
    for one in reports.spending(connection, since, "key"):
        recent["key", one.name] += one.micro_usd
        recent["server", ""] += one.micro_usd
        if team := teams.get(one.name):
            recent["team", team] += one.micro_usd
    revoked = {info.name for info in infos if info.revoked}
    found = []
    for counter in key_rows.list_counters(connection, now):
        account = reports.account_of(counter)
        is_revoked = account.scope == "key" and account.name in revoked
        if not is_revoked or account.spent_micro:
            found.append(Limit(account, recent[account.scope, account.name], is_revoked))
    order = ("server", "team", "key")
    return sorted(found, key=lambda one: (order.index(one.account.scope), -one.recent_micro, -one.account.spent_micro))


def _experts(
    colors: Mapping[str, int],
    is_open: Mapping[str, bool],
    answered: list[journal.Totals],
    outcomes: list[reports.OutcomeSums],
) -> list[ExpertRow]:
    """The experts of the pool and those that were asked before it changed."""
    requests = Counter[str]()
    for total in answered:
        requests[total.expert] += total.requests
    spent = sum(one.micro_usd for one in outcomes)
    rows = []
    for name in dict.fromkeys([*colors, *requests]):
        own = [one for one in outcomes if one.expert == name]
        good = [one for one in own if one.outcome in ("answered", "cancelled")]
        calls = sum(one.attempts for one in good)
        micro_usd = sum(one.micro_usd for one in own)
        rows.append(
            ExpertRow(
                name=name,
                color=colors.get(name, COLORS),
                requests=requests[name],
                request_share=requests[name] / max(requests.total(), 1),
                micro_usd=micro_usd,
                money_share=micro_usd / max(spent, 1),
                mean_micro=sum(one.micro_usd for one in good) / calls if calls else None,
                mean_s=sum(one.latency_s for one in good) / calls if calls else None,
                failures=sum(one.attempts for one in own) - calls,
                is_open=is_open.get(name),
            )
        )
    return rows


def _decisions(connection: Connection, infos: list[KeyInfo]) -> list[Row]:
    names = {info.key_id: info.name for info in infos}
    rows, last = [], journal.recent(connection, DECISIONS)
    pairs = pairs_of(connection, [recorded.decision.id for recorded in last])
    for recorded in last:
        one = recorded.decision
        estimates = [(name, score, cost_usd) for name, (score, cost_usd) in one.estimates.items()]
        estimates.sort(key=lambda estimate: (estimate[0] != one.expert, -(estimate[1] or 0.0)))
        shown = estimates[:ESTIMATES]
        rows.append(Row(recorded, names.get(one.key_id, ""), pairs.get(one.id), shown, len(estimates) - len(shown)))
    return rows


def _policy_row(one: journal.PolicyTotals) -> PolicyRow:
    n = one.rated
    mean = one.feedback / n if n else None
    error = None if n < 2 else math.sqrt(max(one.squared - one.feedback**2 / n, 0.0) / (n - 1) / n)
    return PolicyRow(
        one.policy, one.requests, one.micro_usd / one.requests, one.latency_s / one.requests, n, mean, error
    )
