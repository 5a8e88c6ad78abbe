"""One evaluation for the agent and every router: the same episodes, score and spend at each budget of a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agents.routers.router import Router
from leeroo_env import dynamics
from leeroo_env.dynamics import Rules, State

QUERIES = 16_384


@dataclass(frozen=True)
class Result:
    """How a router did at each of G budgets.

    Attributes:
        score: [G] mean score per query.
        cost_usd: [G] mean spend per query.
        stderr: [G] standard error of `score`, clustered by query, since episodes share queries.
        calls: [G, K] share of the queries given to each expert.
        refused: [G] share of the calls that were refused.
        chosen: [G, n] int64, the expert of each of the n calls at a budget, refused ones as well.
        rows: [G, n] int64, the row of the table that each call asked about.
        scored: [G, n], the score of each call.
    """

    score: np.ndarray
    cost_usd: np.ndarray
    stderr: np.ndarray
    calls: np.ndarray
    refused: np.ndarray
    chosen: np.ndarray
    rows: np.ndarray
    scored: np.ndarray

    @property
    def mean_score(self) -> float:
        """The figure of merit: the mean over the grid of budgets."""
        return float(self.score.mean())


def enough_episodes(rules: Rules, queries: int = QUERIES) -> int:
    """How many episodes ask about `queries` queries."""
    return -(-queries // rules.horizon)


def episodes_of(rules: Rules, budgets_usd: list[float], episodes: int, seed: int) -> State:
    """The start of `episodes` episodes at each of G budgets, dollars a query: [G * episodes], budget by budget.

    The queries are the same at every budget.
    """
    device = rules.table.device
    number = torch.arange(episodes, device=device)
    keys = dynamics.episode_keys(torch.full_like(number, seed), number).repeat(len(budgets_usd))
    budget = torch.tensor(budgets_usd, dtype=torch.float64, device=device).repeat_interleave(episodes)
    return dynamics.begin(rules, keys, budget)


def evaluate(
    router: Router, rules: Rules, budgets_usd: list[float], episodes: int | None = None, seed: int = 0
) -> Result:
    """Plays `episodes` episodes at each budget, dollars a query; the same ones at every budget and for every router.

    Unless told how many, it plays as many as ask 16,384 queries. A router that has `begin` is told the budgets of the
    episodes, dollars a query [B], before their first query.
    """
    episodes = episodes or enough_episodes(rules)
    g, n_calls = len(budgets_usd), episodes * rules.horizon
    state = episodes_of(rules, budgets_usd, episodes, seed)
    features = router.features if router.features is not None else rules.table.embeddings
    if begin := getattr(router, "begin", None):
        begin(state.budget_usd / rules.horizon)
    scores, chosen = [], []
    for _ in range(rules.horizon):
        seen = features[dynamics.current_rows(state)].float()
        chosen.append(router.choose(seen, state.left_usd, rules.horizon - state.t))
        state, outcome = dynamics.step(rules, state, chosen[-1])
        scores.append(outcome.score)
    score = torch.stack(scores, dim=1).view(g, -1).double().cpu().numpy()
    rows = state.rows.view(g, -1).cpu().numpy()
    return Result(
        score=score.mean(axis=1),
        cost_usd=(state.budget_usd - state.left_usd).view(g, -1).sum(dim=1).cpu().numpy() / n_calls,
        stderr=np.array([clustered_stderr(*pair) for pair in zip(score, rows, strict=True)]),
        calls=state.calls.view(g, episodes, -1).sum(dim=1).cpu().numpy() / n_calls,
        refused=state.refused.view(g, -1).sum(dim=1).cpu().numpy() / n_calls,
        chosen=torch.stack(chosen, dim=1).view(g, -1).cpu().numpy(),
        rows=rows,
        scored=score,
    )


def lead(result: Result, other: Result) -> tuple[np.ndarray, np.ndarray, float, float]:
    """How much more `result` scores than `other` on the same episodes: at each budget [G], the standard errors of that
    [G], and the mean over the budgets with its own. Errors are those of differences, clustered by query."""
    gain = result.scored - other.scored
    stderr = np.array([clustered_stderr(*pair) for pair in zip(gain, result.rows, strict=True)])
    mean = gain.mean(axis=0)
    return gain.mean(axis=1), stderr, float(mean.mean()), clustered_stderr(mean, result.rows[0])


def clustered_stderr(scores: np.ndarray, clusters: np.ndarray) -> float:
    """Standard error of the mean of `scores` [n] when those of one cluster [n] are not independent."""
    sums = np.bincount(clusters, weights=scores - scores.mean())
    n = len(np.unique(clusters))
    return float(np.sqrt((sums**2).sum() * n / max(n - 1, 1)) / len(scores))


def summary(
    rules: Rules, split: str, seed: int, budgets_usd: list[float], results: dict[str, Result]
) -> dict[str, Any]:
    """`evaluation.json`."""
    return {
        "table": rules.table.name,
        "split": split,
        "experts": list(rules.table.experts),
        "horizon": rules.horizon,
        "seed": seed,
        "budgets_usd": budgets_usd,
        "routers": {
            name: {key: getattr(result, key).tolist() for key in ("score", "cost_usd", "stderr", "calls", "refused")}
            for name, result in results.items()
        },
    }
