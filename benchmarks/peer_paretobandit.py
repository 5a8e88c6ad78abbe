"""ParetoBandit's own package on a test stream, as its experiment 01 runs it: what `published.py` puts beside ours.

python -m venv peers && peers/bin/pip install paretobandit==0.1.1
peers/bin/python benchmarks/peer_paretobandit.py DATA OUT

Runs in an environment of its own, without this project. DATA is an .npz file that `published.py --peer` writes:
`embeddings` [N, 384] of all-MiniLM-L6-v2, `rewards` and `costs` [N, K], `test` [N] bool, `names` [K], `budgets` [G],
dollars a query, and `seed`. The router has the package's models, priors, projection and default hyperparameters, learns
online from the other rows, in random order, and then goes through the test rows once, still learning. OUT, an .npz
file, gets `rows`, `chosen`, `scored` and `paid_usd`, each [G, n] in the order of the stream.
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
    streams = [_stream(data, features, budget) for budget in data["budgets"].tolist()]
    played: dict[str, Any] = {key: np.stack([stream[key] for stream in streams]) for key in streams[0]}
    np.savez(out_path, **played)


def _stream(data: dict[str, np.ndarray], features: Any, budget_usd: float) -> dict[str, np.ndarray]:
    """What it does on the test rows at one budget, each [n]."""
    seed, names = int(data["seed"]), data["names"].tolist()
    rng = np.random.default_rng(seed)
    np.random.seed(seed)  # noqa: NPY002 - the package draws from it
    router = BanditRouter.create(
        feature_service=features,
        forgetting_factor=BEST_K3_HPARAMS["forgetting_factor"],
        budget_pacer=BudgetPacer(target_avg_spend_usd=budget_usd),
    )
    for test in (False, True):
        rows = rng.permutation(np.flatnonzero(data["test"] == test))
        chosen = np.zeros(len(rows), dtype=np.int64)
        for i, row in enumerate(rows.tolist()):
            name, log = router.route(str(row))
            chosen[i] = names.index(name)
            log.cost_usd = float(data["costs"][row, chosen[i]])
            router.process_feedback(log.request_id, reward=float(data["rewards"][row, chosen[i]]))
    scored, paid_usd = data["rewards"][rows, chosen], data["costs"][rows, chosen]
    return {"rows": rows, "chosen": chosen, "scored": scored, "paid_usd": paid_usd}


if __name__ == "__main__":
    main(*sys.argv[1:])
