"""The trained agent in use: which expert should answer this query?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.policies import BasePolicy

from agents.bid_price import estimate_features
from agents.files import read_tensors
from agents.policy import load_policy, preferences
from agents.predictor import Predictor
from leeroo_env import InputError
from leeroo_env.dynamics import action_mask, budget_features


class Orchestrator:
    """Chooses experts with a policy, from a query's embedding and what is left of money and queries.

    Attributes:
        experts: names of the K experts; choices are indices into it.
        encoder: the `encoder` entry of the table it was trained on: how embeddings have to be made.
    """

    def __init__(self, policy: BasePolicy, description: dict[str, Any], predictor: Predictor | None = None):
        """Args: a policy, what `agents.policy.describe_policy` says of it, and what turns embeddings into the policy's
        features where these are not the embeddings themselves. Users call `load`."""
        self.policy, self.predictor = policy, predictor
        self.experts: list[str] = list(description["experts"])
        self.encoder: dict[str, Any] = description["encoder"]
        self.embedding_dim: int = description["embedding_dim" if predictor else "feature_dim"]
        self.table_sha256: str = description["table_sha256"]
        self._mean_cost_usd = torch.tensor(description["mean_cost_usd"], device=policy.device)
        self._price_range_usd = tuple(description["price_range_usd"])

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
            return cls(policy, description, Predictor.from_tensors(read_tensors(path, device)))
        except KeyError as error:
            raise InputError(f"{path}: {error.args[0]}: missing") from None

    def choose(
        self, embeddings: npt.ArrayLike, remaining_usd: npt.ArrayLike, remaining_queries: npt.ArrayLike
    ) -> np.ndarray:
        """The experts to ask.

        Args:
            embeddings: [B, D], one query a row.
            remaining_usd: [B] or a number, dollars left before each query.
            remaining_queries: [B] or a number, queries left, this one included.

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
        return self._choose(x, usd, queries) if len(x) else np.zeros(0, dtype=np.int64)

    @torch.no_grad()
    def _choose(self, x: np.ndarray, usd: np.ndarray, queries: np.ndarray) -> np.ndarray:
        device = self.policy.device
        left_usd = torch.from_numpy(usd).to(device)
        budget = budget_features(self._price_range_usd, left_usd, torch.from_numpy(queries).to(device))
        features = torch.from_numpy(x).to(device)
        if self.predictor is not None:
            features = estimate_features(self.predictor, features, float(self._mean_cost_usd.max()))
        observations = torch.cat([features, budget], dim=1)
        mask = action_mask(self._mean_cost_usd, left_usd)
        return preferences(self.policy, observations).masked_fill(~mask, -torch.inf).argmax(dim=1).cpu().numpy()
