"""One evaluation for the agent and every router: the same episodes, score and spend at each budget of a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agents.routers import Router
from leeroo_env import dynamics
from leeroo_env.dynamics import Rules, State


@dataclass(frozen=True)
class Result:
    """How a router did at each of G budgets.

    Attributes:
        score: [G] mean score per query.
        cost_usd: [G] mean spend per query.
        stderr: [G] standard error of `score`, clustered by query, since episodes share queries.
        calls: [G, K] share of the queries given to each expert.
        refused: [G] share of the calls that were refused.
    """

    score: np.ndarray
    cost_usd: np.ndarray
    stderr: np.ndarray
    calls: np.ndarray
    refused: np.ndarray

    @property
    def mean_score(self) -> float:
        """The figure of merit: the mean over the grid of budgets."""
        return float(self.score.mean())


def episodes_of(rules: Rules, budgets_usd: list[float], episodes: int, seed: int) -> State:
    """The start of `episodes` episodes at each of G budgets, dollars a query: [G * episodes], budget by budget.

    The queries are the same at every budget.
    """
    device = rules.table.device
    number = torch.arange(episodes, device=device)
    keys = dynamics.episode_keys(torch.full_like(number, seed), number).repeat(len(budgets_usd))
    budget = torch.tensor(budgets_usd, dtype=torch.float64, device=device).repeat_interleave(episodes)
    return dynamics.begin(rules, keys, budget)


def evaluate(router: Router, rules: Rules, budgets_usd: list[float], episodes: int = 256, seed: int = 0) -> Result:
    """Plays `episodes` episodes at each budget, dollars a query; the same ones at every budget and for every router."""
    g, device = len(budgets_usd), rules.table.device
    state = episodes_of(rules, budgets_usd, episodes, seed)
    scores = []
    for _ in range(rules.horizon):
        embeddings = rules.table.embeddings[dynamics.current_rows(state)].float().cpu().numpy()
        choice = router.choose(embeddings, state.left_usd.cpu().numpy(), (rules.horizon - state.t).cpu().numpy())
        state, outcome = dynamics.step(rules, state, torch.as_tensor(choice, device=device))
        scores.append(outcome.score)
    per_query = torch.stack(scores, dim=1).view(g, -1).double().cpu().numpy()  # [G, episodes * H]
    asked = state.rows.view(g, -1)[0].cpu().numpy()
    n_calls = episodes * rules.horizon
    return Result(
        score=per_query.mean(axis=1),
        cost_usd=(state.budget_usd - state.left_usd).view(g, -1).double().sum(dim=1).cpu().numpy() / n_calls,
        stderr=np.array([_clustered_stderr(row, asked) for row in per_query]),
        calls=state.calls.view(g, episodes, -1).sum(dim=1).cpu().numpy() / n_calls,
        refused=state.refused.view(g, -1).sum(dim=1).cpu().numpy() / n_calls,
    )


def _clustered_stderr(scores: np.ndarray, clusters: np.ndarray) -> float:
    """Standard error of the mean of `scores` [n] when those of one cluster [n] are not independent."""
    sums = np.bincount(clusters, weights=scores - scores.mean())
    return float(np.sqrt((sums**2).sum()) / len(scores))


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
