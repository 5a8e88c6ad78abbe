"""The appendix of a report: every router at every budget, regrets, single numbers for curves, domains and horizons.

G budgets, K experts, N rows of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from agents.estimators.base import Estimates
from agents.estimators.evidence import expected_calibration_error, updated
from agents.evaluation.evaluate import Result, episodes_for, evaluate, lead
from agents.evaluation.headline import dollars
from agents.evaluation.markdown import table_head, table_line
from agents.evaluation.metrics import aiq, apgr, calls_by_query, collapse_index, cpt, weak_and_strong
from agents.routers import Router
from leeroo_env.dynamics import Rules, budget_grid, make_rules

MOST_DOMAINS = 20
HORIZONS = (8, 64, 256)
AT_HORIZON = 4_096  # queries played at each of these: they do not decide what to deploy
BAR = "paced kernel ridge"
TERMS = """\
- budget: dollars for an episode of queries, given here for 1,000 queries; spend: what was really paid
- agent: the router that reinforcement learning trained; before PPO, or another algorithm: its start, without training
- agent with one call, agent with several calls: the other agent, which was not kept
- best single: at each budget the best expert that it pays for; best mixture: the best lottery between two experts
- domain means, kNN, kernel ridge, MLP, LinUCB: how a router estimates each expert's score and cost on a query
- paced: the estimated score less a price on cost, which is solved again at every query so that the money lasts
- fixed price: the same with one price for an episode, tuned on val
- planned: the price is what the money is worth later in the episode, by dynamic programming
- two-step: a cheap expert, or an expensive one where the estimated gain is largest
- majority, cascade, cascade routing, two-stage trees: routers that ask several experts about a query
- cut off: a call that costs more than what is left; that is spent, and it scores 0
- lead: difference in score on the same queries; ±: here one standard error, clustered by query
- hindsight: the best that knowing all answers beforehand allows; regret: what is lost against that
- AIQ: mean height of the curve's convex hull between the lowest and the highest mean cost of an expert (RouterBench)
- APGR: mean share of the gap between the cheapest and the best expert that is recovered (RouteLLM)
- CPT: share of the best expert's extra cost that recovers 50 % or 80 % of that gap (RouteLLM; - where it never does)
- collapse: 1 where the choice does not depend on the query, 0 where it depends on nothing else; mean over budgets"""


def appendix(
    rules: Rules,
    split: str,
    seed: int,
    budgets_usd: list[float],
    subject: str,
    routers: Mapping[str, Router],
    results: Mapping[str, Result],
    bounds: Mapping[str, Result],
    numbers: Mapping[str, Mapping[str, float]],
    estimates: Estimates,
) -> list[str]:
    """The lines of the appendix.

    Args:
        rules: of the evaluation.
        split: its name.
        seed: of the episodes.
        budgets_usd: [G], dollars a query.
        subject: the name of the agent, or of the router that the report is about.
        routers: by name.
        results: by the same names, at the budgets.
        bounds: of hindsight, and of hindsight on estimates.
        numbers: `metrics_of` each result.
        estimates: the agent's, of every row of the table.
    """
    usd = [dollars(1000 * b) for b in budgets_usd]
    own = results[subject]
    return [
        "# Appendix",
        "",
        "## Terms",
        "",
        TERMS,
        "",
        "## Score of every router",
        "",
        f"Mean over the same episodes of {rules.horizon} queries for every router, ± one standard error (by query); "
        "budgets in dollars per 1,000 queries. The lead is that of the first line, on the same queries.",
        "",
        rows_of(["budget", *usd, "mean", "lead"], results, lambda r: _scores(r, own)),
        "",
        "## Spend of every router, dollars per 1,000 queries",
        "",
        rows_of(["budget", *usd], results, lambda r: [dollars(1000 * c) for c in r.cost_usd]),
        "",
        "## Regret: what is lost, and where",
        "",
        *_regrets(usd, regrets(subject, own, bounds)),
        "",
        "## One number for a curve",
        "",
        rows_of(["", *numbers[subject]], numbers, lambda row: [_number(x) for x in row.values()]),
        "",
        *_calls_by_domain(rules, shares_by_domain(rules, own)),
        *_experts(rules, split),
        "",
        *_horizons(rules, split, seed, subject, routers),
        *_calibration(rules, estimates),
    ]


def _calibration(rules: Rules, estimates: Estimates) -> list[str]:
    """How well the chances that answers are right are calibrated on val, before and after the evidence of calls."""
    if not bool(rules.evidence.any()):
        return []
    rows = rules.table.rows("val")
    chance, evidence, scores = estimates.reliability()[rows], rules.evidence[rows], rules.table.scores[rows].float()
    after = updated(chance, evidence, 1.0)
    cells = {
        name: [f"{expected_calibration_error(p, scores):.4f}", f"{_log_loss(p, scores):.4f}"]
        for name, p in (("estimated before the call", chance), ("after the call's evidence", after))
    }
    return [
        "",
        "## What calls tell",
        "",
        "The chance that an expert's answer is right, on val: estimated from the query alone, and after what the call "
        "itself tells (evidence columns, length, cost, whether it was cut off). Expected calibration error (15 bins) "
        "and log loss, mean over queries and experts; lower is better.",
        "",
        rows_of(["", "calibration error", "log loss"], cells, lambda row: row),
    ]


def _log_loss(chance: Tensor, scores: Tensor) -> float:
    return float(binary_cross_entropy(chance.clamp(0.001, 0.999), scores))


def _horizons(rules: Rules, split: str, seed: int, subject: str, routers: Mapping[str, Router]) -> list[str]:
    """The same policy in shorter and longer episodes."""
    shown = list(dict.fromkeys(name for name in (subject, BAR) if name in routers))
    cells = {}
    for horizon in sorted({h for h in (*HORIZONS, rules.horizon) if h <= len(rules.rows)}):
        other = make_rules(
            rules.table, split, horizon, features=rules.features, reliability=rules.reliability, evidence=rules.evidence
        )
        budgets, episodes = budget_grid(other), episodes_for(other, AT_HORIZON)
        played = [evaluate(routers[name], other, budgets, episodes, seed) for name in shown]
        gains = [f"{gain:+.4f} ± {stderr:.4f}" for _, _, gain, stderr in (lead(played[0], r) for r in played[1:])]
        cells[str(horizon)] = [*(f"{result.mean_score:.4f}" for result in played), *gains]
    header = ["queries per episode", *shown, *["lead"] * (len(shown) - 1)]
    return [
        "## Shorter and longer episodes",
        "",
        "The same policy in episodes of lengths that it was not trained on; mean over the budgets.",
        "",
        rows_of(header, cells, lambda row: row),
    ]


def regrets(subject: str, own: Result, bounds: Mapping[str, Result]) -> dict[str, np.ndarray]:
    """The scores of hindsight and of the subject, and what is lost between them; each [G]."""
    hindsight, estimated = bounds.values()
    return {
        "hindsight": hindsight.score,
        "hindsight on estimates": estimated.score,
        subject: own.score,
        "prediction regret": hindsight.score - estimated.score,
        "allocation regret": estimated.score - own.score,
    }


def _regrets(usd: list[str], rows: Mapping[str, np.ndarray]) -> list[str]:
    return [
        "Hindsight knows all answers of an episode in advance and spends the budget optimally (a linear relaxation; no "
        "router does better). Hindsight on estimates knows the queries in advance but only estimates of the answers. "
        "Prediction regret is what the estimates lose, allocation regret what spending loses; the latter may be "
        "negative, since hindsight on estimates never corrects them. Both bounds may leave a query unanswered, "
        "which a router may not.",
        "",
        rows_of(["", *usd, "mean"], rows, lambda row: [*(f"{x:.3f}" for x in row), f"{row.mean():.4f}"]),
    ]


def metrics_of(rules: Rules, split: str, result: Result) -> dict[str, float]:
    """AIQ, APGR, CPT and collapse of a router's curve."""
    table = rules.table
    cost, score = (x.cpu().numpy().astype(np.float64) for x in (table.mean_cost_usd(split), table.mean_score(split)))
    weak, strong = weak_and_strong(cost, score)
    collapse = [
        collapse_index(calls_by_query(rows, chosen, len(cost)))
        for rows, chosen in zip(result.rows, result.chosen, strict=True)
    ]
    low, high = float(cost.min()), float(cost.max())
    return {
        "AIQ": aiq(result.cost_usd, result.score, (low, high)) if low < high else float("nan"),
        "APGR": apgr(result.cost_usd, result.score, weak, strong),
        "CPT 50 %": cpt(result.cost_usd, result.score, weak, strong, 0.5),
        "CPT 80 %": cpt(result.cost_usd, result.score, weak, strong, 0.8),
        "collapse": float(np.mean(collapse)),
    }


def _domains(rules: Rules, rows: Tensor) -> tuple[np.ndarray, list[str]]:
    """The domain of each of `rows` [n], and the names of all domains, none where there are too many to show."""
    domain = np.array(rules.table.queries["domain"].take(pa.array(rows.cpu().numpy())).to_pylist())
    names = sorted(set(domain.tolist()))
    return domain, names if 1 < len(names) <= MOST_DOMAINS else []


def shares_by_domain(rules: Rules, own: Result) -> dict[str, np.ndarray]:
    """Of each domain the share of the queries that each expert is asked about first [K], over all budgets; none where
    there are too many domains to show."""
    rows, chosen = own.rows.ravel(), own.chosen.ravel()
    domain, names = _domains(rules, torch.arange(len(rules.table)))
    if not names:
        return {}
    code = np.searchsorted(names, domain)[rows]
    k = len(rules.table.experts)
    counts = np.bincount(code * k + chosen, minlength=len(names) * k).reshape(-1, k)
    return dict(zip(names, counts / counts.sum(axis=1, keepdims=True).clip(min=1), strict=True))


def _calls_by_domain(rules: Rules, shares: Mapping[str, np.ndarray]) -> list[str]:
    """Share of the calls to each expert by domain, over all budgets."""
    if not shares:
        return []
    cells = dict(zip(rules.table.experts, np.stack(list(shares.values()), axis=1), strict=True))
    first = ", the expert asked first" if rules.max_calls > 1 else ""
    return [
        "## Which experts are asked, by domain",
        "",
        f"Over all budgets{first}:",
        "",
        rows_of(["expert", *shares], cells, percents),
        "",
    ]


def _experts(rules: Rules, split: str) -> list[str]:
    """Score and cost of each expert alone, by domain where there are few."""
    table, rows = rules.table, rules.table.rows(split)
    scores = table.scores[rows].cpu().numpy()
    oracle = float(scores.max(axis=1).mean())
    domain, shown = _domains(rules, rows)
    cost = table.mean_cost_usd(split).tolist()
    cells = {
        name: [
            dollars(1000 * cost[k]),
            f"{scores[:, k].mean():.3f}",
            *(f"{scores[domain == d, k].mean():.2f}" for d in shown),
        ]
        for k, name in enumerate(table.experts)
    }
    return [
        "## Each expert alone, by domain",
        "",
        rows_of(["expert", "dollars per 1,000 queries", "score", *shown], cells, lambda row: row),
        "",
        f"Every {split} query counts once here. An oracle that always picks a correct expert, at any cost, would score "
        f"{oracle:.3f}.",
    ]


def _scores(result: Result, own: Result) -> list[str]:
    cells = [f"{s:.3f} ± {e:.3f}" for s, e in zip(result.score, result.stderr, strict=True)]
    _, _, gain, stderr = lead(own, result)
    return [*cells, f"{result.mean_score:.4f}", "" if result is own else f"{gain:+.4f} ± {stderr:.4f}"]


def percents(shares: np.ndarray) -> list[str]:
    """Each of them in percent."""
    return [f"{100 * s:.0f} %" for s in shares]


def _number(x: float) -> str:
    return "-" if np.isnan(x) else f"{x:.3f}"


def rows_of(header: list[str], rows: Mapping[str, Any], cells: Callable[[Any], list[str]]) -> str:
    """A table in Markdown, a line for each of `rows`, its `cells` after its name."""
    return "\n".join([*table_head(header), *(table_line([name, *cells(row)]) for name, row in rows.items())])
