"""The trained agent in use: which expert should answer this query, and what do those asked agree on?"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from agents.estimators.ensemble import Predictor, predict_all, reliability_of
from agents.policies.add_expert import add_expert
from agents.policies.answer_model import Calls, calls_from_features
from agents.policies.bid_price import estimate_features
from agents.policies.io import PolicyRouter, load_policy, save_policy
from agents.serving.answer_match import Compare, by_normal_form
from agents.serving.session import Reply, Session
from experts.types import Expert, Query
from leeroo_env import ExpertTable, InputError
from leeroo_env.dynamics import poll, poll_features, vote_weight
from leeroo_env.files import read_tensors, write_tensors

AT_ONCE = 16


class Orchestrator:
    """Chooses experts with a policy, from a query's embedding and what is left of money and queries.

    Attributes:
        experts: names of the K experts; choices are indices into it.
        encoder: the `encoder` entry of the table it was trained on: how embeddings have to be made.
        max_calls: M, how many experts it may ask about a query.
        deliver: K, the choice of a policy with several calls to ask nobody else.
    """

    def __init__(self, policy: BasePolicy, description: dict[str, Any], predictor: Predictor | None = None):
        """Args: a policy, what `describe_policy` says of it, and what turns embeddings into the policy's
        features where these are not the embeddings themselves. Users call `load`."""
        self.policy, self.predictor, self.description = policy, predictor, description
        self.experts: list[str] = list(description["experts"])
        self.encoder: dict[str, Any] = description["encoder"]
        self.embedding_dim: int = description["embedding_dim" if predictor else "feature_dim"]
        self.table_sha256: str = description["table_sha256"]
        self._router: Any = PolicyRouter(policy, description)

    @property
    def max_calls(self) -> int:
        return getattr(self._router, "max_calls", 1)

    @property
    def deliver(self) -> int:
        return len(self.experts)

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
        calls: Calls | None = None,
    ) -> np.ndarray:
        """The experts to ask; of a policy with several calls, those to ask next.

        Args:
            embeddings: [B, D], one query a row.
            remaining_usd: [B] or a number, dollars left before each query.
            remaining_queries: [B] or a number, queries left, this one included.
            texts: [B], the queries themselves: their form sharpens the estimates of a bid-price policy.
            calls: of a policy with several calls, those made about the queries so far, C = M - 1; None: none yet.

        Returns:
            [B] int64, indices into `experts`, or `deliver`. Experts whose mean cost exceeds what is left are not
            chosen.

        Raises:
            InputError: an array of the wrong shape, or numbers that are not finite.
        """
        x = self._checked(embeddings)
        try:
            usd = np.broadcast_to(np.asarray(remaining_usd, dtype=np.float64), len(x)).copy()
            queries = np.broadcast_to(np.asarray(remaining_queries), len(x)).astype(np.int64)
        except ValueError:
            raise InputError(f"remaining_usd and remaining_queries must be numbers or [{len(x)}]") from None
        if not (np.isfinite(usd).all() and (usd >= 0).all() and (queries >= 0).all()):
            raise InputError(
                "embeddings, remaining_usd and remaining_queries must be finite, and the last two not negative"
            )
        _check_texts(texts, len(x))
        self._check_calls(calls, len(x))
        if len(x) == 0:
            return np.zeros(0, dtype=np.int64)
        left_usd, left = (torch.from_numpy(part).to(self.policy.device) for part in (usd, queries))
        seen = self._see(x, texts)
        told = [self._told(calls, seen)] if self.max_calls > 1 else []
        return self._router.choose(seen, left_usd, left, *told).cpu().numpy()

    def answer(
        self,
        queries: Sequence[Query | str],
        experts: Mapping[str, Expert],
        remaining_usd: float,
        remaining_queries: int | None = None,
        *,
        compare: str | Compare = "exact",
        embeddings: npt.ArrayLike | None = None,
        at_once: int = AT_ONCE,
    ) -> list[Reply]:
        """Has experts answer queries: asks, compares the answers, asks on or delivers the best supported one.

        Queries share what is left. They are answered `at_once` at a time, in rounds of at most one call each, with the
        calls to one expert together; each is decided as if it came first of those not answered yet. With `at_once` 1
        they are answered one after another, exactly by the rules of an episode.

        The budget is hard: a call is only made if its worst case fits what is left, by its price and `max_tokens`, of
        an expert without a `spec` its mean cost. A call that fails costs nothing and counts as one of the M. If the
        server may have billed it all the same, only the spend cap that the experts pay from knows.

        Args:
            queries: B, or their texts.
            experts: by name, all in `self.experts`; `experts.pool.make_experts` makes them.
            remaining_usd: dollars left for these queries and those still to come.
            remaining_queries: how many queries that money is for, these included; None: these alone.
            compare: when answers agree: the name of the grader that filled the table ("multiple-choice", "number",
                "exact", "math"), or what `agents.serving.answer_match.by_similarity` gives for free text.
            embeddings: [B, D]; None: made by `experts.encoder` as the table's were.
            at_once: queries under way at the same time.

        Returns:
            B replies: what is delivered, and every call. A query that nobody answered has `text` None.

        Raises:
            InputError: an expert is missing, or something given makes no sense.
        """
        asked = [Query(str(i), query) if isinstance(query, str) else query for i, query in enumerate(queries)]
        left = len(asked) if remaining_queries is None else remaining_queries
        if not (math.isfinite(remaining_usd) and remaining_usd >= 0 and left >= len(asked) and at_once >= 1):
            raise InputError(
                f"remaining_usd {remaining_usd}, remaining_queries {left}, at_once {at_once}: must be 0 or more, "
                f"{len(asked)} or more, 1 or more"
            )
        if missing := [name for name in self.experts if name not in experts]:
            raise InputError(f"experts: no expert named {missing[0]!r}; there are {', '.join(experts)}")
        compare = by_normal_form(compare) if isinstance(compare, str) else compare
        if not asked:
            return []
        texts = [query.text for query in asked]
        x = self._checked(self._encoder.encode(texts) if embeddings is None else embeddings)
        _check_texts(texts, len(x))
        seen = self._see(x, texts)
        session = Session(
            self._router,
            [experts[name] for name in self.experts],
            self.description["mean_cost_usd"],
            compare,
            float(remaining_usd),
            left,
        )
        parts = [slice(start, start + at_once) for start in range(0, len(asked), at_once)]
        reliability = self._reliability(seen)
        return [reply for part in parts for reply in session.answer(asked[part], seen[part], reliability[part])]

    def _checked(self, embeddings: npt.ArrayLike) -> np.ndarray:
        """[B, D] float32."""
        x = np.asarray(embeddings, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.embedding_dim:
            raise InputError(f"embeddings are {list(x.shape)}, not [B, {self.embedding_dim}]")
        if not np.isfinite(x).all():
            raise InputError("embeddings must be finite")
        return x

    def _check_calls(self, calls: Calls | None, n: int) -> None:
        c = self.max_calls - 1
        if calls is None:
            return
        if c == 0:
            raise InputError("calls: this policy asks one expert a query")
        if calls.asked.shape != (n, c) or calls.group.shape != (n, c) or calls.made.shape != (n,):
            raise InputError(f"calls: asked {list(calls.asked.shape)}: asked and group must be [{n}, {c}], made [{n}]")

    def _told(self, calls: Calls | None, seen: Tensor) -> Calls:
        """What a router with several calls takes besides, for queries [B, F]."""
        k, m, device = len(self.experts), self.max_calls, seen.device
        if calls is None:
            return calls_from_features(torch.zeros(len(seen), 3 * k + 3, device=device), m)
        if calls.polled is not None:
            return calls
        asked, group, made = (part.to(device) for part in (calls.asked, calls.group, calls.made))
        votes = vote_weight(self._reliability(seen)).gather(1, asked.clamp(min=0))
        polled = poll_features(k, asked, asked >= 0, poll(asked, asked >= 0, group, votes), m)
        polled[:, -1] = made / m
        return calls_from_features(polled, m)

    @torch.no_grad()
    def _see(self, x: np.ndarray, texts: Sequence[str] | None) -> Tensor:
        """What the policy sees of queries, [B, F]."""
        seen = torch.from_numpy(x).to(self.policy.device)
        if self.predictor is None:
            return seen
        return estimate_features(self.predictor.predict(seen, texts), self.description["price_range_usd"][1])

    def _reliability(self, seen: Tensor) -> Tensor:
        """[B, K], the estimated chances that experts are right; without estimates all votes weigh the same."""
        if self.predictor is None:
            return seen.new_full((len(seen), len(self.experts)), 0.5)
        return reliability_of(seen)

    @functools.cached_property
    def _encoder(self) -> Any:
        from experts.encoder import Encoder

        if not self.encoder.get("model"):
            raise InputError("embeddings: the table that this was trained on does not say how to make them")
        return Encoder(self.encoder["model"], max_tokens=self.encoder.get("max_tokens"))

    def router(self, table: ExpertTable) -> PolicyRouter:
        """For `evaluate` on a table with the same experts, on queries that training has not seen."""
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
        grown = add_expert(self.policy, self.description, self.predictor, name, seen, scored, paid, texts)
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
