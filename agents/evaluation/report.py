"""The report of a run: `evaluation.json`, `curve.png` and `report.md`.

G budgets, K experts, N rows of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from agents.estimators.base import Estimates
from agents.evaluation.bounds import estimated_bound, hindsight_bound
from agents.evaluation.evaluate import Result, evaluate, lead, summary
from agents.evaluation.markdown import table_head, table_line
from agents.evaluation.metrics import aiq, apgr, calls_by_query, collapse_index, cpt, matching_cost, weak_and_strong
from agents.evaluation.plots import AGENT, draw_curve
from agents.routers import Router
from leeroo_env.dynamics import Rules, budget_grid, make_rules
from leeroo_env.files import write_atomically, write_json, write_text

MOST_DOMAINS = 20
HORIZONS = (8, 64, 256, 1024)
BAR = "paced kernel ridge"
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)  # of the highest mean cost: more budgets for the agent
NAMED = (0.5, 0.75)  # the shares in the headline


def compare(routers: dict[str, Router], rules: Rules, seed: int) -> dict[str, Result]:
    """Evaluates all routers on the same episodes and prints their scores."""
    budgets = budget_grid(rules)
    print(f"{'usd per query':>24}  " + "  ".join(f"{budget:7.2g}" for budget in budgets))
    results = {}
    for name, router in routers.items():
        result = results[name] = evaluate(router, rules, budgets, seed=seed)
        print(f"{name:>24}  " + "  ".join(f"{s:7.3f}" for s in result.score) + f"   mean {result.mean_score:.4f}")
    return results


def write_report(
    run_dir: Path,
    rules: Rules,
    split: str,
    seed: int,
    routers: dict[str, Router],
    results: dict[str, Result],
    estimates: Estimates,
    notes: str,
) -> None:
    """Writes the three files of an evaluation.

    Args:
        run_dir: where to.
        rules: those of the evaluation, on its split.
        split: its name.
        seed: of the episodes.
        routers: by name, the agent as "agent".
        results: by the same names.
        estimates: the agent's, of every row of the table.
        notes: the last paragraph.
    """
    budgets = budget_grid(rules)
    bounds = {
        "hindsight": hindsight_bound(rules, budgets, seed=seed),
        "hindsight on estimates": estimated_bound(rules, estimates.score, estimates.cost_usd, budgets, seed=seed),
    }
    more = [usd for share in SHARES if (usd := share * rules.cost_scale.high_usd) > budgets[0]]
    reach = _joined(results[AGENT], evaluate(routers[AGENT], rules, more, seed=seed) if more else None)
    numbers = {name: _metrics(rules, split, result) for name, result in results.items()}
    text = _markdown(rules, split, budgets, results, bounds, numbers, reach)
    text += [*_horizons(rules, split, seed, routers), "", notes]
    figure = draw_curve(rules, split, results, bounds)
    write_atomically(run_dir / "curve.png", lambda path: figure.savefig(path, dpi=150, format="png"))
    write_text(run_dir / "report.md", "\n".join(text) + "\n")
    write_json(
        run_dir / "evaluation.json",
        {**summary(rules, split, seed, budgets, {**results, **bounds}), "metrics": _without_nan(numbers)},
    )


def _markdown(
    rules: Rules,
    split: str,
    budgets: list[float],
    results: dict[str, Result],
    bounds: dict[str, Result],
    numbers: dict[str, dict[str, float]],
    reach: tuple[np.ndarray, np.ndarray],
) -> list[str]:
    table, usd = rules.table, [f"{b:.3g}" for b in budgets]
    return [
        f"# {table.name}: {len(table.experts)} experts, {split} split",
        "",
        table.info.description,
        "",
        *_headline(rules, split, results, reach),
        "",
        "![score over spend](curve.png)",
        "",
        "## What the money buys",
        "",
        *_what_money_buys(rules, split, *reach),
        "",
        "## Score per query by budget",
        "",
        f"Mean over the same episodes of {rules.horizon} queries for every router, ± one standard error (by query). "
        "The agent's lead is the mean difference on the same queries.",
        "",
        _rows(["dollars per query", *usd, "mean", "agent's lead"], results, lambda r: _scores(r, results[AGENT])),
        "",
        "## Regret: what is lost, and where",
        "",
        *_regrets(usd, results[AGENT], bounds),
        "",
        "## One number for a curve",
        "",
        *_one_number(numbers),
        "",
        "## Spend per query by budget, in dollars",
        "",
        _rows(["budget", *usd], results, lambda r: [f"{c:.3g}" for c in r.cost_usd]),
        "",
        "## Which experts the agent asks",
        "",
        _rows(["expert", *usd], dict(zip(table.experts, results[AGENT].calls.T, strict=True)), _percent),
        "",
        *_calls(rules, results[AGENT]),
        f"Refused calls of the agent: {100 * results[AGENT].refused.mean():.2f} per 100 queries.",
        "",
        *_calls_by_domain(rules, results[AGENT]),
        *_experts(rules, split),
        "",
    ]


def _joined(agent: Result, more: Result | None) -> tuple[np.ndarray, np.ndarray]:
    """Spend and score at all budgets, by rising spend."""
    parts = [agent] if more is None else [agent, more]
    cost_usd, score = np.concatenate([r.cost_usd for r in parts]), np.concatenate([r.score for r in parts])
    order = cost_usd.argsort(kind="stable")
    return cost_usd[order], score[order]


def _headline(rules: Rules, split: str, results: dict[str, Result], reach: tuple[np.ndarray, np.ndarray]) -> list[str]:
    agent = results[AGENT]
    others = {name: result for name, result in results.items() if name != AGENT}
    sentences = [
        f"Over the {len(agent.score)} budgets the agent's mean score is {agent.mean_score:.4f}.",
    ]
    if others:
        best = max(others, key=lambda name: others[name].mean_score)
        _, _, gain, stderr = lead(agent, others[best])
        sentences.append(
            f"The best other router ({best}) scores {others[best].mean_score:.4f}: the agent is "
            f"{100 * abs(gain):.2f} points {'above' if gain >= 0 else 'below'} it (± {100 * stderr:.2f}, one standard "
            "error of the difference)."
        )
    score, cost = rules.table.mean_score(split), rules.table.mean_cost_usd(split)
    k = int(score.argmax())
    share = matching_cost(*reach, float(score[k])) / max(float(cost[k]), 1e-30)
    name = rules.table.experts[k]
    if np.isnan(share):
        i = int(reach[1].argmax())
        part, of_cost = reach[1][i] / max(float(score[k]), 1e-30), reach[0][i] / max(float(cost[k]), 1e-30)
        sentences.append(
            f"It never matches {name}, the best expert, but reaches {100 * part:.1f} % of its score at "
            f"{100 * of_cost:.0f} % of its cost."
        )
    elif cost[k] > 0:
        sentences.append(f"**It matches {name}, the best expert, at {100 * share:.0f} % of its cost.**")
    highest_usd = float(cost.max())
    if highest_usd > 0:
        bought = [f"{np.interp(part * highest_usd, *reach):.3f} at {100 * part:.0f} %" for part in NAMED]
        sentences.append(f"It scores {' and '.join(bought)} of the most expensive expert's cost.")
    return [" ".join(sentences)]


def _what_money_buys(rules: Rules, split: str, cost_usd: np.ndarray, reached: np.ndarray) -> list[str]:
    """For each expert, what the agent spends for the same score."""
    score, cost = rules.table.mean_score(split).tolist(), rules.table.mean_cost_usd(split).tolist()
    cells = {}
    for k in sorted(range(len(score)), key=lambda k: -score[k]):
        paid = matching_cost(cost_usd, reached, score[k])
        words = f"not matched; {100 * reached.max() / max(score[k], 1e-30):.1f} % of its score at most"
        if paid == cost_usd.min():
            words = f"matched already at {paid:.3g} dollars, the least it spent"
        elif not np.isnan(paid) and cost[k] == 0:
            words = f"matched at {paid:.3g} dollars; it is free"
        elif not np.isnan(paid):
            words = f"matched at {paid:.3g} dollars: {100 * paid / max(cost[k], 1e-30):.0f} % of its cost"
        cells[rules.table.experts[k]] = [f"{score[k]:.3f}", f"{cost[k]:.3g}", words]
    return [
        "What each expert scores and costs if it answers every query, and what the agent spends for the same score "
        "(interpolated between the budgets of this report and 30 % to 100 % of the most expensive expert's cost).",
        "",
        _rows(["expert", "score", "dollars per query", "the agent"], cells, lambda row: row),
    ]


def _horizons(rules: Rules, split: str, seed: int, routers: dict[str, Router]) -> list[str]:
    """The same policy in shorter and longer episodes."""
    shown = [name for name in (AGENT, BAR) if name in routers]
    cells = {}
    for horizon in sorted({h for h in (*HORIZONS, rules.horizon) if h <= len(rules.rows)}):
        other = make_rules(rules.table, split, horizon, reliability=rules.reliability, features=rules.features)
        played = [evaluate(routers[name], other, budget_grid(other), seed=seed) for name in shown]
        gains = [f"{gain:+.4f} ± {stderr:.4f}" for _, _, gain, stderr in (lead(played[0], r) for r in played[1:])]
        cells[str(horizon)] = [*(f"{result.mean_score:.4f}" for result in played), *gains]
    header = ["queries per episode", *shown, *["agent's lead"] * (len(shown) - 1)]
    return [
        "## Shorter and longer episodes",
        "",
        "The same policy in episodes of lengths that it was not trained on; mean over the budgets.",
        "",
        _rows(header, cells, lambda row: row),
    ]


def _regrets(usd: list[str], agent: Result, bounds: dict[str, Result]) -> list[str]:
    hindsight, estimated = bounds.values()
    rows = {
        "hindsight": hindsight.score,
        "hindsight on estimates": estimated.score,
        "agent": agent.score,
        "prediction regret": hindsight.score - estimated.score,
        "allocation regret": estimated.score - agent.score,
    }
    return [
        "Hindsight knows all answers of an episode in advance and spends the budget optimally (a linear relaxation; no "
        "router does better). Hindsight on estimates knows the queries in advance but only estimates of the answers. "
        "Prediction regret is what the estimates lose, allocation regret what spending loses; the latter may be "
        "negative, since hindsight on estimates never corrects them. Both bounds may leave a query unanswered, "
        "which the agent may not.",
        "",
        _rows(["", *usd, "mean"], rows, lambda row: [*(f"{x:.3f}" for x in row), f"{row.mean():.4f}"]),
    ]


def _one_number(numbers: dict[str, dict[str, float]]) -> list[str]:
    cells = {name: [_number(x) for x in row.values()] for name, row in numbers.items()}
    return [
        "AIQ is the mean height of the curve's convex hull between the lowest and the highest mean cost of an expert "
        "(RouterBench). APGR is the mean share of the gap between the cheapest and the best expert that is recovered, "
        "and CPT what share of the best one's extra cost recovers 50 % and 80 % of it (RouteLLM; - where it is never "
        "reached). The collapse index, averaged over budgets, is 1 where the choice does not depend on the "
        "query and 0 where it depends on nothing else.",
        "",
        _rows(["", *numbers[AGENT]], cells, lambda row: row),
    ]


def _metrics(rules: Rules, split: str, result: Result) -> dict[str, float]:
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


def _without_nan(numbers: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """JSON has no nan: null stands for it."""
    return {name: {k: None if np.isnan(x) else x for k, x in row.items()} for name, row in numbers.items()}


def _domains(rules: Rules, rows: Tensor) -> tuple[np.ndarray, list[str]]:
    """The domain of each of `rows` [n], and the names of all domains, none where there are too many to show."""
    domain = np.array(rules.table.queries["domain"].take(pa.array(rows.cpu().numpy())).to_pylist())
    names = sorted(set(domain.tolist()))
    return domain, names if 1 < len(names) <= MOST_DOMAINS else []


def _calls(rules: Rules, agent: Result) -> list[str]:
    """How many experts are asked about a query, where it may be several."""
    if rules.max_calls == 1:
        return []
    made = ", ".join(f"{calls:.2f}" for calls in agent.calls.sum(axis=1))
    return [f"Calls per query, of at most {rules.max_calls}, by budget: {made}.", ""]


def _calls_by_domain(rules: Rules, agent: Result) -> list[str]:
    """Share of the calls to each expert by domain, over all budgets."""
    rows, chosen = agent.rows.ravel(), agent.chosen.ravel()
    domain, names = _domains(rules, torch.arange(len(rules.table)))
    if not names:
        return []
    code = np.searchsorted(names, domain)[rows]
    k = len(rules.table.experts)
    counts = np.bincount(code * k + chosen, minlength=len(names) * k).reshape(-1, k)
    share = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    cells = dict(zip(rules.table.experts, share.T, strict=True))
    first = ", the expert asked first" if rules.max_calls > 1 else ""
    return [
        f"By domain, over all budgets{first}:",
        "",
        _rows(["expert", *names], cells, _percent),
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
        name: [f"{cost[k]:.3g}", f"{scores[:, k].mean():.3f}", *(f"{scores[domain == d, k].mean():.2f}" for d in shown)]
        for k, name in enumerate(table.experts)
    }
    return [
        "## Each expert alone",
        "",
        _rows(["expert", "dollars per query", "score", *shown], cells, lambda row: row),
        "",
        f"An oracle that always picks a correct expert, at any cost, would score {oracle:.3f}.",
    ]


def _scores(result: Result, agent: Result) -> list[str]:
    cells = [f"{s:.3f} ± {e:.3f}" for s, e in zip(result.score, result.stderr, strict=True)]
    _, _, gain, stderr = lead(agent, result)
    return [*cells, f"{result.mean_score:.4f}", "" if result is agent else f"{gain:+.4f} ± {stderr:.4f}"]


def _percent(shares: np.ndarray) -> list[str]:
    return [f"{100 * s:.0f} %" for s in shares]


def _number(x: float) -> str:
    return "-" if np.isnan(x) else f"{x:.3f}"


def _rows(header: list[str], rows: dict[str, Any], cells: Callable[[Any], list[str]]) -> str:
    return "\n".join([*table_head(header), *(table_line([name, *cells(row)]) for name, row in rows.items())])
