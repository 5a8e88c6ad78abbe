"""The trained agent in use: which expert should answer this query?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.policies import BasePolicy

from agents.bid_price import estimate_features
from agents.files import read_tensors, write_tensors
from agents.newcomer import with_expert
from agents.policy import PolicyRouter, load_policy, save_policy
from agents.predictor import Predictor, predict_all
from leeroo_env import ExpertTable, InputError


class Orchestrator:
    """Chooses experts with a policy, from a query's embedding and what is left of money and queries.

    Attributes:
        experts: names of the K experts; choices are indices into it.
        encoder: the `encoder` entry of the table it was trained on: how embeddings have to be made.
    """

    def __init__(self, policy: BasePolicy, description: dict[str, Any], predictor: Predictor | None = None):
        """Args: a policy, what `agents.policy.describe_policy` says of it, and what turns embeddings into the policy's
        features where these are not the embeddings themselves. Users call `load`."""
        self.policy, self.predictor, self.description = policy, predictor, description
        self.experts: list[str] = list(description["experts"])
        self.encoder: dict[str, Any] = description["encoder"]
        self.embedding_dim: int = description["embedding_dim" if predictor else "feature_dim"]
        self.table_sha256: str = description["table_sha256"]
        self._router = PolicyRouter(policy, description)

    @classmethod
    def load(cls, run_dir: str | os.PathLike, device: torch.device | str = "cpu") -> Orchestrator:
        """The policy that a run of `train.py` kept. Raises InputError where there is none, or it is broken."""
        directory = Path(run_dir) / "policy"
        if not directory.is_dir():
            raise InputError(f"{run_dir}: holds no policy/; is it the directory of a training run?")
        policy, description = load_policy(directory, device)
        if description["policy"] == "mlp":
            return cls(policy, description)
        path = directory / "predictor.safetensors"
        try:
            predictor = Predictor.from_tensors(read_tensors(path, device))
        except KeyError as error:
            raise InputError(f"{path}: {error.args[0]}: missing") from None
        if predictor.out_of_fold.shape[1] != description["feature_dim"]:
            raise InputError(f"{path}: is not the predictor of this policy: it knows other experts")
        return cls(policy, description, predictor)

    def choose(
        self,
        embeddings: npt.ArrayLike,
        remaining_usd: npt.ArrayLike,
        remaining_queries: npt.ArrayLike,
        texts: Sequence[str] | None = None,
    ) -> np.ndarray:
        """The experts to ask.

        Args:
            embeddings: [B, D], one query a row.
            remaining_usd: [B] or a number, dollars left before each query.
            remaining_queries: [B] or a number, queries left, this one included.
            texts: [B], the queries themselves: their form sharpens the estimates of a bid-price policy.

        Returns:
            [B] int64, indices into `experts`. Experts whose mean cost exceeds what is left are not chosen.

        Raises:
            InputError: an array of the wrong shape, or numbers that are not finite.
        """
        x = np.asarray(embeddings, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.embedding_dim:
            raise InputError(f"embeddings are {list(x.shape)}, not [B, {self.embedding_dim}]")
        try:
            usd = np.broadcast_to(np.asarray(remaining_usd, dtype=np.float64), len(x)).copy()
            queries = np.broadcast_to(np.asarray(remaining_queries), len(x)).astype(np.int64)
        except ValueError:
            raise InputError(f"remaining_usd and remaining_queries must be numbers or [{len(x)}]") from None
        if not (np.isfinite(x).all() and np.isfinite(usd).all() and (usd >= 0).all() and (queries >= 0).all()):
            raise InputError(
                "embeddings, remaining_usd and remaining_queries must be finite, and the last two not negative"
            )
        _check_texts(texts, len(x))
        return self._choose(x, usd, queries, texts) if len(x) else np.zeros(0, dtype=np.int64)

    def _choose(self, x: np.ndarray, usd: np.ndarray, queries: np.ndarray, texts: Sequence[str] | None) -> np.ndarray:
        seen, left_usd, left = (torch.from_numpy(part).to(self.policy.device) for part in (x, usd, queries))
        if self.predictor is not None:
            seen = estimate_features(self.predictor.predict(seen, texts), self._router.price_range_usd[1])
        return self._router.choose(seen, left_usd, left).cpu().numpy()

    def router(self, table: ExpertTable) -> PolicyRouter:
        """For `agents.evaluate.evaluate` on a table with the same experts, on queries that training has not seen."""
        if self.predictor is None:
            return self._router
        features = estimate_features(predict_all(self.predictor, table), self._router.price_range_usd[1])
        return PolicyRouter(self.policy, self.description, features)

    def add_expert(
        self,
        name: str,
        embeddings: npt.ArrayLike,
        scores: npt.ArrayLike,
        costs_usd: npt.ArrayLike,
        texts: Sequence[str] | None = None,
    ) -> None:
        """Takes in one more expert without training, from what it did on a few hundred queries.

        What it scores and costs is estimated from what the others are estimated to (`Predictor.with_expert`), and the
        plan is made anew with it. What training has learnt of the others stays; `save` keeps the result.

        Args:
            name: as it will stand at the end of `experts`.
            embeddings: [m, D], the queries; those that the others were trained on may be among them.
            scores: [m], in [0, 1].
            costs_usd: [m], dollars, not negative.
            texts: [m], the queries themselves.

        Raises:
            InputError: a name that there is already, numbers that do not fit, or a policy without estimates.
        """
        if self.predictor is None:
            raise InputError("add_expert: needs a bid-price policy; this one has no estimates to extend")
        if name in self.experts:
            raise InputError(f"expert {name}: there is one of that name already")
        x = np.asarray(embeddings, dtype=np.float32)
        score, cost_usd = np.asarray(scores, dtype=np.float32), np.asarray(costs_usd, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.embedding_dim or len(x) < 2:
            raise InputError(f"embeddings are {list(x.shape)}, not [2 or more, {self.embedding_dim}]")
        _check_texts(texts, len(x))
        if score.shape != x.shape[:1] or cost_usd.shape != x.shape[:1]:
            raise InputError(f"scores {list(score.shape)}, costs_usd {list(cost_usd.shape)}: must be [{len(x)}]")
        if not (np.isfinite(x).all() and ((score >= 0) & (score <= 1)).all() and np.isfinite(cost_usd).all()):
            raise InputError("embeddings and costs_usd must be finite, scores 0 to 1")
        if (cost_usd < 0).any():
            raise InputError("costs_usd must not be negative")
        device = self.policy.device
        seen, scored, paid = (torch.from_numpy(part).to(device) for part in (x, score, cost_usd))
        grown = with_expert(self.policy, self.description, self.predictor, name, seen, scored, paid, texts)
        self.__init__(*grown)  # type: ignore[misc]

    def save(self, run_dir: str | os.PathLike) -> None:
        """Writes what `load` reads."""
        directory = Path(run_dir) / "policy"
        if self.predictor is not None:
            write_tensors(directory / "predictor.safetensors", self.predictor.tensors())
        save_policy(directory, self.policy, self.description)


def _check_texts(texts: Sequence[str] | None, n: int) -> None:
    if texts is None:
        return
    if len(texts) != n:
        raise InputError(f"{len(texts)} texts for {n} embeddings")
    if not all(isinstance(text, str) for text in texts):
        raise InputError("texts must be strings")
