"""RouteLLM's own matrix factorisation, on our tables: what `published.py` puts beside ours.

python -m venv peers && peers/bin/pip install routellm==0.2.0
peers/bin/python benchmarks/peer_routellm.py DATA OUT

Runs in an environment of its own, without this project; DATA and OUT are as in `peer_llmrouter.py`. The package's other
routers need embeddings from OpenAI (similarity-weighted ranking) or weights that were tuned on the Chatbot Arena (BERT,
causal LLM). Its training of the matrix factorisation runs offline, on our embeddings: from the train questions that one
of two experts answers better, as its battles that are no ties. It routes between two experts, by a threshold on the
strong one's probability to win, which is set to send tenths of the val questions to the strong one. Its own settings
with the cheapest and the best expert make one router; the tuned one has the points of all `SETTINGS`, and of each two
neighbours among the experts that score better than all cheaper ones.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peer_lottery import Data, save

os.environ.setdefault("OPENAI_API_KEY", "none")  # the package makes a client when it is imported; nothing is asked
from routellm.routers.matrix_factorization.model import MODEL_IDS
from routellm.routers.matrix_factorization.train_matrix_factorization import (
    MFModel_Train,
    PairwiseDataset,
    train_loops,
)

STRONG, WEAK = "gpt-4-1106-preview", "mixtral-8x7b-instruct-v0.1"  # stand for any two experts: the names are fixed
SETTINGS = (  # the package's own comes first; alpha is the noise on embeddings
    {"num_epochs": 100, "alpha": 0.1},
    {"num_epochs": 100, "alpha": 0.01},
)


def main(data_path: str, out_path: str) -> None:
    """Fits every pair of experts with every setting, and divides the budgets among the thresholds."""
    data = dict(np.load(data_path))
    score, cost = (data[key][data["train"]].mean(axis=0) for key in ("rewards", "costs"))
    by_cost = np.argsort(cost, kind="stable")
    better = by_cost[score[by_cost] >= np.maximum.accumulate(score[by_cost])].tolist()
    own = _points(data, better[0], better[-1], SETTINGS[0])
    pairs = dict.fromkeys([(better[0], better[-1]), *itertools.pairwise(better)])
    every = [_points(data, weak, strong, setting) for weak, strong in pairs for setting in SETTINGS]
    points = {"matrix factorisation": own, "matrix factorisation, tuned on val": np.concatenate(every)}
    save(out_path, data, {f"RouteLLM's {name}": chosen for name, chosen in points.items()})


def _points(data: Data, weak: int, strong: int, setting: dict[str, float]) -> np.ndarray:
    """The expert for every row [N] at every threshold; none and all to the strong one come first."""
    if weak == strong:  # the cheapest expert is the best
        return np.full((1, len(data["rewards"])), strong)
    wins = _win_rates(data, weak, strong, setting)
    thresholds = [np.inf, -np.inf, *np.quantile(wins[data["val"]], np.arange(1, 10) / 10)]
    return np.stack([np.where(wins >= threshold, strong, weak) for threshold in thresholds])


def _win_rates(data: Data, weak: int, strong: int, setting: dict[str, float]) -> np.ndarray:
    """The probability that the strong expert wins, [N], as the package trains it (`__main__` of its trainer)."""
    torch.manual_seed(int(data["seed"]))
    gain = data["rewards"][:, strong] - data["rewards"][:, weak]
    ids = torch.tensor([[MODEL_IDS[name]] * len(gain) for name in (STRONG, WEAK)])
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stderr(io.StringIO()):
        np.save(Path(directory) / "embeddings.npy", data["embeddings"].astype(np.float32))
        net = MFModel_Train(
            dim=128,
            num_models=len(MODEL_IDS),
            num_prompts=len(gain),
            text_dim=data["embeddings"].shape[1],
            npy_path=str(Path(directory) / "embeddings.npy"),
        )
        train, val = (_battles(gain, data[split]) for split in ("train", "val"))
        batches = train.get_dataloaders(64), val.get_dataloaders(1024, shuffle=False)
        train_loops(net, *batches, lr=3e-4, weight_decay=1e-5, device="cpu", **setting)
    with torch.no_grad():
        return torch.sigmoid(net(*ids, torch.arange(len(gain)), test=True)).numpy()


def _battles(gain: np.ndarray, split: np.ndarray) -> PairwiseDataset:
    """The questions of a split that one expert answers better, in the package's format."""
    rows = np.flatnonzero(split & (gain != 0)).tolist()
    winners = ["model_a" if gain[row] > 0 else "model_b" for row in rows]
    samples = [
        {"model_a": STRONG, "model_b": WEAK, "idx": row, "winner": w} for row, w in zip(rows, winners, strict=True)
    ]
    return PairwiseDataset(samples)


if __name__ == "__main__":
    main(*sys.argv[1:])
