"""ParetoBandit's own package on a test stream, as its experiment 01 runs it: what `published.py` puts beside ours.

python -m venv peers && peers/bin/pip install paretobandit==0.1.1
peers/bin/python benchmarks/peer_paretobandit.py DATA OUT

Runs in an environment of its own, without this project. DATA is an .npz file that `published.py --peer` writes:
`embeddings` [N, 384] of all-MiniLM-L6-v2, `rewards` and `costs` [N, K], `test` [N] bool, `names` [K], `budgets` [G],
dollars a query, and `seed`. The router has the package's models, priors, projection and default hyperparameters, learns
online from the other rows, in random order, and then goes through the test rows once, still learning. OUT is as
`peer_lottery.save` writes it: a budget's point is the stream at that budget.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import numpy as np
from pareto_bandit import BanditRouter, FeatureService
from pareto_bandit.budget_pacer import BudgetPacer
from pareto_bandit.config import BEST_K3_HPARAMS, DEFAULT_PCA_PATH


def main(data_path: str, out_path: str) -> None:
    """Plays the stream at each budget."""
    logging.disable(logging.WARNING)
    data = dict(np.load(data_path))
    embeddings = data["embeddings"].astype(np.float64)
    features = FeatureService(  # a prompt is the number of its row
        custom_encoder=lambda prompt: embeddings[int(prompt)], embedding_dim=384, pca_path=DEFAULT_PCA_PATH
    )
    chosen = np.stack([_stream(data, features, budget) for budget in data["budgets"].tolist()])
    names, rows = np.array(["its own package, in this run"]), np.flatnonzero(data["test"])
    np.savez(out_path, names=names, rows=rows, chosen=chosen[None], shares=np.eye(len(chosen))[None])


def _stream(data: dict[str, np.ndarray], features: Any, budget_usd: float) -> np.ndarray:
    """The model that it asks about each test row at one budget, [n]."""
    seed, names = int(data["seed"]), data["names"].tolist()
    rng = np.random.default_rng(seed)
    np.random.seed(seed)  # noqa: NPY002 - the package draws from it
    router = BanditRouter.create(
        feature_service=features,
        forgetting_factor=BEST_K3_HPARAMS["forgetting_factor"],
        budget_pacer=BudgetPacer(target_avg_spend_usd=budget_usd),
    )
    chosen = np.zeros(len(data["test"]), dtype=np.int64)
    for test in (False, True):
        for row in rng.permutation(np.flatnonzero(data["test"] == test)).tolist():
            name, log = router.route(str(row))
            chosen[row] = names.index(name)
            log.cost_usd = float(data["costs"][row, chosen[row]])
            router.process_feedback(log.request_id, reward=float(data["rewards"][row, chosen[row]]))
    return chosen[data["test"]]


if __name__ == "__main__":
    main(*sys.argv[1:])
