"""What routers without a budget do with one: a lottery between two of their points, for `peer_*.py`.

A point is a router with some setting of its trade-off. Needs numpy only.
"""

from __future__ import annotations

import numpy as np

Data = dict[str, np.ndarray]


def save(out_path: str, data: Data, points: dict[str, np.ndarray]) -> None:
    """Writes what `published.py --peer` reads.

    `names` [R] of the routers, `rows` [n], the test rows, `chosen` [R, P, n], the expert that a point asks about a row,
    and `shares` [R, G, P], of the queries that go to a point at a budget; a router with fewer points than P repeats its
    last with no share.

    Args:
        out_path: an .npz file.
        data: `rewards` and `costs` [N, K], `train`, `val` and `test` [N] bool, `budgets` [G], dollars a query.
        points: of each router, the choices [P, N] of its points for all rows; those for train rows are not read.
    """
    cheapest = data["costs"][data["train"]].mean(axis=0).argmin()
    most = 1 + max(len(chosen) for chosen in points.values())
    played, shares = [], []
    for chosen in points.values():
        every = np.concatenate([np.full((1, chosen.shape[1]), cheapest), chosen])
        every = np.pad(every, ((0, most - len(every)), (0, 0)), mode="edge")
        val = np.flatnonzero(data["val"])
        score, cost = (data[key][val, every[:, val]].mean(axis=1) for key in ("rewards", "costs"))
        played.append(every[:, data["test"]])
        shares.append([mixed(score, cost, usd) for usd in data["budgets"].tolist()])
    rows = np.flatnonzero(data["test"])
    np.savez(out_path, names=np.array(list(points)), rows=rows, chosen=np.stack(played), shares=np.array(shares))


def mixed(score: np.ndarray, cost: np.ndarray, budget_usd: float) -> np.ndarray:
    """The shares [P] of at most two points that score best in the mean for a mean cost within the budget; the cheapest
    point alone if none is within it. Scores and costs [P] are those on val."""
    points = np.arange(len(score))
    within, beyond = points[cost <= budget_usd], points[cost > budget_usd]
    best = np.eye(len(score))[within[score[within].argmax()] if len(within) else cost.argmin()]
    for low in within:
        for high in beyond:
            share = (budget_usd - cost[low]) / (cost[high] - cost[low])
            if (1 - share) * score[low] + share * score[high] > best @ score:
                best = (1 - share) * np.eye(len(score))[low] + share * np.eye(len(score))[high]
    return best
