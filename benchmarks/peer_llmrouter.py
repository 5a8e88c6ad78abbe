"""LLMRouter's own kNN, SVM, MLP and matrix factorisation, on our tables: what `published.py` puts beside ours.

python -m venv peers && peers/bin/pip install llmrouter-lib==0.4.0
peers/bin/python benchmarks/peer_llmrouter.py DATA OUT

Runs in an environment of its own, without this project. DATA is an .npz file that `published.py --peer` writes:
`embeddings` [N, D], `rewards` and `costs` [N, K], `train`, `val` and `test` [N] bool, `names` [K], `budgets` [G],
dollars a query, and `seed`. The package's trainers fit each router to the train rows, in the package's own format, and
what they trained chooses for the others, as its `route_single` does. Its routers have no budget: they learn which
expert has the largest `performance`. Their points are fits to

- the experts up to the cost of each that scores better than all cheaper ones, with the score as performance; equal
  scores go to the expert that scores best in the mean, whose row comes first;
- all experts, with `performance` = (1 - b) score - b cost / (the dearest expert's mean cost), for b = `COST_WEIGHT`,
  where equal scores go to the cheaper.

A budget buys the lottery between two points, or the cheapest expert alone, that scores best on val for that money
(`peer_lottery`). "Tuned" has the points of all `SETTINGS`, else those of the package's own alone. OUT is as
`peer_lottery.save` writes it.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from llmrouter import models
from peer_lottery import Data, save

COST_WEIGHT = 0.2
PROCESSES = 6
KNN = {"weights": "uniform", "algorithm": "auto", "leaf_size": 30, "p": 2, "metric": "minkowski"}
MLP = {"hidden_layer_sizes": [128, 64], "activation": "relu", "lr": 0.001, "batch_size": 32, "alpha": 0.0001}
MF = {"latent_dim": 128, "lr": 0.001, "noise_alpha": 0.0}
Setting = dict[str, Any]
SETTINGS: dict[str, list[Setting]] = {  # the package's own comes first (its documentation; `probability` not used)
    "kNN": [KNN | {"n_neighbors": k} for k in (5, 20, 80)],
    "SVM": [{"kernel": "rbf", "gamma": "scale", "C": c} for c in (1.0, 10.0)],
    "MLP": [MLP | {"epochs": epochs} for epochs in (100, 10)],
    "matrix factorisation": [MF | {"epochs": epochs} for epochs in (5, 1)],
}
CLASSES: dict[str, tuple[Any, Any]] = {
    "kNN": (models.KNNRouter, models.KNNRouterTrainer),
    "SVM": (models.SVMRouter, models.SVMRouterTrainer),
    "MLP": (models.MLPRouter, models.MLPTrainer),
    "matrix factorisation": (models.MFRouter, models.MFRouterTrainer),
}


def main(data_path: str, out_path: str) -> None:
    """Fits every router with every setting, and divides the budgets among its points."""
    data = dict(np.load(data_path))
    pools = _pools(data)
    fits = [*((pool, 0.0) for pool in pools), (pools[-1], COST_WEIGHT)]
    tasks = [(name, setting, *fit) for name in reversed(SETTINGS) for setting in SETTINGS[name] for fit in fits]
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("fork")) as processes:
        chosen = list(processes.map(partial(_chosen, data), *zip(*tasks, strict=True)))
    points: dict[str, np.ndarray] = {}
    for name in SETTINGS:
        every = np.stack([experts for experts, task in zip(chosen, tasks, strict=True) if task[0] == name])
        points[f"LLMRouter's {name}"] = every[: len(fits)]
        points[f"LLMRouter's {name}, tuned on val"] = every
    save(out_path, data, points)


def _pools(data: Data) -> list[np.ndarray]:
    """The experts up to the cost of each that scores better than all cheaper ones, the best-scoring first."""
    score, cost = (data[key][data["train"]].mean(axis=0) for key in ("rewards", "costs"))
    by_cost = np.argsort(cost, kind="stable")
    better = np.flatnonzero(score[by_cost] >= np.maximum.accumulate(score[by_cost]))
    pools = [by_cost[: last + 1] for last in better if last > 0] + [by_cost]
    return [pool[np.argsort(-score[pool], kind="stable")] for pool in {len(pool): pool for pool in pools}.values()]


def _chosen(data: Data, name: str, setting: Setting, pool: np.ndarray, weight: float) -> np.ndarray:
    """Trains a router with the package's trainer, and asks what was trained about the val and test rows; [N], others
    -1."""
    router_class, trainer_class = CLASSES[name]
    torch.manual_seed(int(data["seed"]))
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        router = router_class(_write(Path(directory), data, setting, pool, weight))
        trainer = trainer_class(router, device="cpu")
        trainer.train()
    number = {name: k for k, name in enumerate(data["names"].tolist())}
    asked = ~data["train"]
    answers = ASK[name](router, trainer.model, torch.from_numpy(data["embeddings"][asked].astype(np.float32)))
    chosen = np.full(len(asked), -1)
    chosen[asked] = [number[name] for name in answers]
    return chosen


def _ask_sklearn(router: Any, model: Any, embeddings: torch.Tensor) -> list[str]:
    return model.predict(embeddings.numpy()).tolist()


@torch.no_grad()
def _ask_mlp(router: Any, model: Any, embeddings: torch.Tensor) -> list[str]:
    return [router.idx_to_model[i] for i in model.predict(embeddings).tolist()]


@torch.no_grad()
def _ask_mf(router: Any, model: Any, embeddings: torch.Tensor) -> list[str]:
    return [router.idx_to_model[int(model.score_all(query).argmax())] for query in model.project_text(embeddings)]


ASK: dict[str, Callable[[Any, Any, torch.Tensor], list[str]]] = {  # as their `route_single`, without reading a file
    "kNN": _ask_sklearn,
    "SVM": _ask_sklearn,
    "MLP": _ask_mlp,
    "matrix factorisation": _ask_mf,
}


def _write(directory: Path, data: Data, setting: Setting, pool: np.ndarray, weight: float) -> str:
    """The train rows of a pool of experts, and the configuration, whose path it returns, in the package's format."""
    rows, names = np.flatnonzero(data["train"]), data["names"].tolist()
    mean_cost = data["costs"][rows].mean(axis=0)
    utility = (1 - weight) * data["rewards"] - weight * data["costs"] / mean_cost.max()
    with (directory / "routing.jsonl").open("w") as file:
        for row in rows.tolist():
            for k in pool.tolist():
                line = {"query": str(row), "embedding_id": row, "model_name": names[k], "performance": utility[row, k]}
                file.write(json.dumps(line, default=float) + "\n")
    embeddings = torch.from_numpy(data["embeddings"].astype(np.float32))
    torch.save(embeddings, directory / "embeddings.pt")
    files = {"query_embedding_data": "embeddings.pt", "routing_data_train": "routing.jsonl"}
    config = {
        "data_path": {key: str(directory / name) for key, name in files.items()},
        "model_path": {"ini_model_path": "", "save_model_path": str(directory / "model.pkl")},
        "metric": {"weights": {"performance": 1, "cost": 0, "llm_judge": 0}},
        "hparam": setting | ({"text_dim": embeddings.shape[1]} if "latent_dim" in setting else {}),
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return str(directory / "config.yaml")


if __name__ == "__main__":
    main(*sys.argv[1:])
