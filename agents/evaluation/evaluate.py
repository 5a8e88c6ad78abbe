"""One evaluation for the agent and every router: the same episodes, score and spend at each budget of a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.policies.answer_model import calls_from_features
from agents.routers.base import Context, Router
from leeroo_env import dynamics
from leeroo_env.dynamics import Rules, State
from leeroo_env.dynamics.rng import sample_without_replacement
from leeroo_env.table import ExpertTable

QUERIES = 16_384  # played at a budget, at most
PLAYS = 3  # of each query of the split at a budget: differences between plays are small beside those between queries
FEWEST_QUERIES = 2_048


@dataclass(frozen=True)
class Result:
    """How a router did at each of G budgets.

    Attributes:
        score: [G] mean score per query.
        cost_usd: [G] mean spend per query.
        stderr: [G] standard error of `score`, clustered by query, since episodes share queries.
        calls: [G, K] calls to each expert a query.
        cut_off: [G] calls cut off for want of money, a query.
        chosen: [G, n] int64, the first expert asked about each of the n queries at a budget, those cut off as well.
        rows: [G, n] int64, the row of the table of each query.
        scored: [G, n], the score of each query.
        paid_usd: [G, n], what its calls cost.
    """

    score: np.ndarray
    cost_usd: np.ndarray
    stderr: np.ndarray
    calls: np.ndarray
    cut_off: np.ndarray
    chosen: np.ndarray
    rows: np.ndarray
    scored: np.ndarray
    paid_usd: np.ndarray

    @property
    def mean_score(self) -> float:
        """The figure of merit: the mean over the grid of budgets."""
        return float(self.score.mean())

    def at(self, places: Sequence[int]) -> Result:
        """The result at some of the budgets, in this order."""
        return Result(**{f.name: getattr(self, f.name)[list(places)] for f in fields(self)})


def episodes_for(rules: Rules, queries: int = QUERIES) -> int:
    """How many episodes ask about `queries` queries, or about each of the split `PLAYS` times if that is fewer."""
    return -(-min(queries, max(PLAYS * len(rules.rows), FEWEST_QUERIES)) // rules.horizon)


def evaluation_episodes(rules: Rules, budgets_usd: list[float], episodes: int, seed: int) -> State:
    """The start of `episodes` episodes at each of G budgets, dollars a query: [G * episodes], budget by budget.

    The queries are the same at every budget. Each permutation of the split's queries is dealt out to as many episodes
    as it fills, so that queries are played equally often, but for those that are left over.
    """
    device, horizon = rules.table.device, rules.horizon
    dealt = min(len(rules.rows) // horizon, episodes)
    number = torch.arange(-(-episodes // dealt), device=device)
    keys = dynamics.episode_keys(torch.full_like(number, seed), number)
    places = sample_without_replacement(keys, len(rules.rows), dealt * horizon).view(-1, horizon)[:episodes]
    rows = rules.rows[places].repeat(len(budgets_usd), 1)
    budget = torch.tensor(budgets_usd, dtype=torch.float64, device=device).repeat_interleave(episodes)
    return dynamics.new_episodes(rules, rows, budget * horizon)


def evaluate(
    router: Router,
    rules: Rules,
    budgets_usd: list[float],
    episodes: int | None = None,
    seed: int = 0,
    on_step: Callable[[], object] = lambda: None,
) -> Result:
    """Plays `episodes` episodes at each budget, dollars a query; the same ones at every budget and for every router.

    Unless told how many, it plays each query three times, at least 2,048 queries and at most 16,384. A router that has
    `begin` is told the budgets of the episodes, dollars a query [B], before their first query. One that has `max_calls`
    above 1 may ask that many experts about a query, whatever the rules say; the others ask one. `on_step` is called
    after each step of the episodes.
    """
    max_calls = router.max_calls
    rules = replace(rules, max_calls=max_calls)
    episodes = episodes or episodes_for(rules)
    g, n_queries = len(budgets_usd), episodes * rules.horizon
    state = evaluation_episodes(rules, budgets_usd, episodes, seed)
    features = router.features if router.features is not None else rules.features
    router.begin(state.budget_usd / rules.horizon)
    score = torch.zeros(state.rows.shape, device=features.device)
    paid_usd = torch.zeros(state.rows.shape, dtype=torch.float64, device=features.device)
    chosen = torch.zeros_like(state.rows)
    playing = torch.arange(len(state.t), device=features.device)
    ended: list[tuple[Tensor, State]] = []
    for step in range(rules.horizon * max_calls):
        seen = features[dynamics.current_rows(state)]
        if isinstance(seen, Tensor):
            seen = seen.float()
        calls = calls_from_features(state.call_features, max_calls) if max_calls > 1 else None
        actions = router.choose(Context(seen, state.left_usd, rules.horizon - state.t, calls))
        first = (state.asked[:, 0] < 0) if max_calls > 1 else slice(None)
        chosen[playing[first], state.t[first]] = actions[first]
        after, outcome = dynamics.step(rules, state, actions)
        paid_usd[playing, state.t] += outcome.cost_usd
        told = outcome.delivered
        score[playing[told], state.t[told]] = outcome.score[told]
        state = after
        on_step()
        if max_calls > 1 and step >= rules.horizon - 1:  # episodes end one by one
            over = outcome.terminated
            ended.append((playing[over], dynamics.select_episodes(state, over.nonzero().squeeze(1))))
            playing, state = playing[~over], dynamics.select_episodes(state, (~over).nonzero().squeeze(1))
            if len(playing) == 0:
                break
    if ended:
        order = torch.cat([where for where, _ in ended]).argsort()
        state = State(**{f.name: torch.cat([getattr(s, f.name) for _, s in ended])[order] for f in fields(State)})
    scored = score.view(g, -1).double().cpu().numpy()
    rows = state.rows.view(g, -1).cpu().numpy()
    return Result(
        score=scored.mean(axis=1),
        cost_usd=(state.budget_usd - state.left_usd).view(g, -1).sum(dim=1).cpu().numpy() / n_queries,
        stderr=np.array([clustered_stderr(*pair) for pair in zip(scored, rows, strict=True)]),
        calls=state.calls.view(g, episodes, -1).sum(dim=1).cpu().numpy() / n_queries,
        cut_off=state.cut_off.view(g, -1).sum(dim=1).cpu().numpy() / n_queries,
        chosen=chosen.view(g, -1).cpu().numpy(),
        rows=rows,
        scored=scored,
        paid_usd=paid_usd.view(g, -1).cpu().numpy(),
    )


def always(table: ExpertTable, expert: int, like: Result) -> Result:
    """What asking one expert about every query of the result `like` scores and costs, whatever the budget."""
    rows, g = like.rows[0], len(like.rows)  # the queries are the same at every budget

    def at_each_budget(value: np.ndarray) -> np.ndarray:
        return np.broadcast_to(value, (g, *value.shape))  # without a copy: there may be hundreds of experts

    scored, paid_usd = (x[:, expert].double().cpu().numpy()[rows] for x in (table.scores, table.costs_usd))
    return Result(
        score=at_each_budget(scored.mean()),
        cost_usd=at_each_budget(paid_usd.mean()),
        stderr=at_each_budget(np.array(clustered_stderr(scored, rows))),
        calls=at_each_budget(np.eye(like.calls.shape[1])[expert]),
        cut_off=np.zeros(g),
        chosen=at_each_budget(np.full_like(rows, expert)),
        rows=like.rows,
        scored=at_each_budget(scored),
        paid_usd=at_each_budget(paid_usd),
    )


def lead(result: Result, other: Result) -> tuple[np.ndarray, np.ndarray, float, float]:
    """How much more `result` scores than `other` on the same episodes: at each budget [G], the standard errors of that
    [G], and the mean over the budgets with its own. Errors are those of differences, clustered by query."""
    gain = result.scored - other.scored
    stderr = np.array([clustered_stderr(*pair) for pair in zip(gain, result.rows, strict=True)])
    mean = gain.mean(axis=0)
    return gain.mean(axis=1), stderr, float(mean.mean()), clustered_stderr(mean, result.rows[0])


def clearly_above(result: Result, other: Result) -> bool:
    """Whether it scores more on the same episodes, by more than the standard error of the difference: the best of many
    would else be kept for its luck."""
    _, _, gain, stderr = lead(result, other)
    return gain > stderr


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
            name: {key: getattr(result, key).tolist() for key in ("score", "cost_usd", "stderr", "calls", "cut_off")}
            for name, result in results.items()
        },
    }
