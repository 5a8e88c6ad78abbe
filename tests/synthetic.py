"""A made-up table whose best policy is known, to see at once whether an agent learns."""

from __future__ import annotations

from typing import Any

import numpy as np

from leeroo_env.table import ExpertInfo, ExpertTable

DOMAINS = ("easy", "code", "hard")
DOMAIN_SHARES = (0.5, 0.25, 0.25)
EXPERTS = ("small", "coder", "large")
COST_USD = (0.0001, 0.0002, 0.001)
CORRECT = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]], dtype=np.float64)  # [domain, expert]


def synthetic_table(n: int = 3000, dim: int = 16, seed: int = 0) -> ExpertTable:
    """N queries of three kinds, which differ in their embedding, and three experts with fixed prices.

    `small` answers easy queries, `coder` code, `large` everything at ten times the price of `small`.
    """
    rng = np.random.default_rng(seed)
    kind = rng.choice(len(DOMAINS), size=n, p=DOMAIN_SHARES)
    centres = np.linalg.qr(rng.normal(size=(dim, dim)))[0][: len(DOMAINS)]
    embeddings = centres[kind] + rng.normal(scale=0.5 / np.sqrt(dim), size=(n, dim))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return ExpertTable.from_arrays(
        "synthetic",
        [ExpertInfo(name=name) for name in EXPERTS],
        embeddings.astype(np.float32),
        CORRECT[kind],
        np.broadcast_to(COST_USD, (n, len(EXPERTS))),
        domains=[DOMAINS[k] for k in kind],
        description="synthetic: three kinds of queries, three experts, made up so that the best policy is known",
    )


def synthetic_optimum(budget_usd_per_query: float) -> float:
    """The mean score per query of the best policy, for long streams (a fractional knapsack solved by hand).

    Every query costs at least `small`'s price. A dollar buys most where `coder` answers code (0.25 of the queries, one
    answer for 0.0001 more), then where `large` answers hard queries (0.25, one answer for 0.0009 more).
    """
    cheap, coder, large = COST_USD
    left = budget_usd_per_query - cheap
    code = min(DOMAIN_SHARES[1], left / (coder - cheap))
    left -= code * (coder - cheap)
    hard = min(DOMAIN_SHARES[2], max(0.0, left) / (large - cheap))
    return DOMAIN_SHARES[0] + code + hard


DOUBTS = ("one", "two", "expensive")
DOUBT_COST_USD = (0.0001, 0.00011, 0.002)
RIGHT = 0.6


def doubting_table(n: int = 1500, seed: int = 0, **kwargs: Any) -> ExpertTable:
    """Two cheap experts, right by chance, whose wrong answers never agree, and an expensive one that is always right.

    The query says nothing about which of them is right: only their answers do. The best is to ask both cheap ones, and
    the expensive one where they differ, which is always right and costs `doubting_optimum_usd`.
    """
    rng = np.random.default_rng(seed)
    right = rng.random((n, 3)) < (RIGHT, RIGHT, 1)
    answers = np.where(right, "right", np.array([["a", "b", "c"]] * n)).astype(object)
    embeddings = rng.normal(size=(n, 4)).astype(np.float32)
    costs_usd = np.broadcast_to(DOUBT_COST_USD, (n, 3))
    return ExpertTable.from_arrays("doubting", DOUBTS, embeddings, right, costs_usd, answers=answers, **kwargs)


def doubting_optimum_usd() -> float:
    """Mean cost of a query in the best way."""
    return sum(DOUBT_COST_USD[:2]) + (1 - RIGHT**2) * DOUBT_COST_USD[2]
