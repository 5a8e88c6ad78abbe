"""Routes queries with a trained policy: chooses experts, has them answer, and takes in new experts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import numbers
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from agents.estimators.ensemble import Predictor, predict_all
from agents.estimators.evidence import VOTE_WEIGHT, EvidenceModel, table_evidence, updated
from agents.estimators.models import Predicts
from agents.policies.add_expert import add_expert
from agents.policies.answer_model import Calls, calls_from_features
from agents.policies.bid_price import estimate_features
from agents.policies.description import NO_ALGORITHM, PolicyDescription, describe_policy, read_description
from agents.policies.io import PREDICTOR, load_evidence, load_policy, load_predictor, save_policy
from agents.routers.base import Context, Router
from agents.routers.function import FunctionRouter
from agents.routers.policy import PolicyRouter
from agents.routers.stored import StoredRouter, load_router, save_router
from agents.serving.answer_match import Compare
from agents.serving.breaker import CircuitBreaker
from agents.serving.chat import ReplyStream
from agents.serving.checks import (
    as_budgets,
    as_compare,
    as_embeddings,
    as_queries,
    as_texts,
    check_limited,
    check_stream,
    experts_in_order,
)
from agents.serving.decider import Decider
from agents.serving.defaults import budget_of, compare_of
from agents.serving.live import Live
from agents.serving.purse import Purse
from agents.serving.reply import Reply, Route
from agents.serving.session import Session
from experts.pool import load_pool
from experts.specs import Pool
from experts.types import Chat, Expert, Query
from leeroo_env import ExpertTable, InputError
from leeroo_env.cost_scale import CostScale
from leeroo_env.dynamics import HORIZON, call_features, count_votes, make_rules, vote_weight
from leeroo_env.variants import shared_models

AT_ONCE = 16
MOST_THREADS = 64  # that `aanswer` and `aroute` wait in
T = TypeVar("T")
Conversation = Sequence[Mapping[str, Any]]  # messages as OpenAI's API has them
Queries = Iterable[Query | str | Conversation] | Query | str | Conversation


class Orchestrator:
    """Chooses experts with a trained policy, from a query's embedding, the remaining budget and the remaining queries.

    Attributes:
        experts: names of the K experts; choices are indices into it.
        encoder: the `encoder` entry of the training table: how embeddings must be made.
        max_calls: M, the most experts it may ask about one query.
        deliver: K, the stop action of a policy with several calls: ask no further expert.
    """

    def __init__(
        self,
        policy: BasePolicy | Router,
        description: PolicyDescription,
        predictor: Predicts | None = None,
        evidence_model: EvidenceModel | None = None,
    ):
        """Args: a policy or a router, its `describe_policy`, the predictor that turns embeddings into its features,
        None where these are the embeddings themselves, and the model of what calls tell. Users call `load` or `of`."""
        self.breaker, self._evidence_model = CircuitBreaker(), evidence_model
        self._live: Live | None = None
        self._encoding = threading.Lock()
        self._set_policy(policy, description, predictor)

    def _set_policy(
        self, policy: BasePolicy | Router, description: PolicyDescription, predictor: Predicts | None
    ) -> None:
        self.policy: Any = policy
        self.predictor, self.description = predictor, description
        self.experts: list[str] = list(description.experts)
        self.encoder: dict[str, Any] = description.encoder
        self.embedding_dim: int = description.embedding_dim if predictor else description.feature_dim
        self.table_sha256: str = description.table_sha256
        self._router = policy if isinstance(policy, Router) else PolicyRouter(policy, description)
        self.cost_scale: CostScale = self._router.cost_scale  # type: ignore[attr-defined]
        self.device = self.cost_scale.mean_usd.device

    @property
    def max_calls(self) -> int:
        return self._router.max_calls

    @property
    def deliver(self) -> int:
        return len(self.experts)

    @property
    def left_usd(self) -> float | None:
        """Dollars left of `max_usd`; None where it was loaded without a pool."""
        return None if self._live is None else self._live.purse.left_usd

    @classmethod
    def load(
        cls,
        run_dir: str | os.PathLike,
        device: torch.device | str = "cpu",
        *,
        pool: str | os.PathLike | Pool | None = None,
        max_usd: float | None = None,
    ) -> Orchestrator:
        """The policy kept by a run of `train.py`.

        Args:
            run_dir: of the run.
            device: of the policy.
            pool: pool.yaml with its experts, for `answer`, `route` and `stream`.
            max_usd: the dollars that all of their calls may be billed together.

        Raises:
            InputError: the policy or the pool is missing or broken, or an argument makes no sense.
        """
        orchestrator = cls._read(Path(run_dir), device)
        if pool is None and max_usd is None:
            return orchestrator
        if pool is None or not isinstance(max_usd, numbers.Real) or not 0 <= float(max_usd) < math.inf:
            raise InputError(f"pool {pool}, max_usd {max_usd}: give both, a pool.yaml and dollars from 0")
        loaded = pool if isinstance(pool, Pool) else load_pool(Path(pool))
        usd_per_query, compare = budget_of(Path(run_dir)), compare_of(Path(run_dir))
        orchestrator._live = Live(orchestrator, loaded, Purse(float(max_usd)), usd_per_query, compare)
        orchestrator._live.make_experts()
        return orchestrator

    @classmethod
    def _read(cls, run_dir: Path, device: torch.device | str) -> Orchestrator:
        directory = run_dir / "policy"
        if not directory.is_dir():
            raise InputError(f"{run_dir}: holds no policy/; is it the directory of a training run?")
        if read_description(directory / "policy.json").policy == "router":
            stored, estimator = load_router(directory, device)
            return cls(stored, stored.description, estimator)
        policy, description = load_policy(directory, device)
        if description.policy == "mlp":
            return cls(policy, description)
        predictor = load_predictor(directory, device)
        if 2 * predictor.out_of_fold.score.shape[1] != description.feature_dim:
            file = directory / PREDICTOR
            raise InputError(f"{file}: is not the predictor of this policy: it was fitted to other experts")
        return cls(policy, description, predictor, load_evidence(directory, description, device))

    @classmethod
    def of(cls, router: FunctionRouter, table: ExpertTable) -> Orchestrator:
        """Any policy that observes the embeddings of a table, as `agents.routers.from_function` makes a router of."""
        horizon = min(HORIZON, len(table.rows("train")))
        rules = make_rules(table, horizon=horizon, max_calls=router.max_calls)
        return cls(router, describe_policy(rules, NO_ALGORITHM, {}, "router"))

    def choose(
        self,
        embeddings: npt.ArrayLike,
        remaining_usd: npt.ArrayLike,
        remaining_queries: npt.ArrayLike,
        texts: Sequence[str] | str | None = None,
        calls: Calls | None = None,
        domains: Sequence[str] | None = None,
    ) -> np.ndarray:
        """The expert to ask next for each of B queries.

        Args:
            embeddings: [B, D], one query per row.
            remaining_usd: [B] or a number, dollars left before each query.
            remaining_queries: [B] or a number, queries left, this one included.
            texts: [B], the queries' texts, from which a bid-price policy takes more features for its estimates; one
                text where B is 1.
            calls: of a policy with several calls, the calls so far, with C = M - 1; None: none yet.
            domains: [B], the queries' domains, which a router by domain means needs.

        Returns:
            [B] int64, indices into `experts`, or `deliver`. No expert is chosen whose mean cost exceeds the remaining
            budget.

        Raises:
            InputError: an array of the wrong shape, or numbers that are not finite.
        """
        x = as_embeddings(embeddings, self.embedding_dim)
        usd, queries = as_budgets(remaining_usd, remaining_queries, len(x))
        texts = as_texts(texts, len(x))
        self._check_calls(calls, len(x))
        if len(x) == 0:
            return np.zeros(0, dtype=np.int64)
        domains = as_texts(domains, len(x), "domains")
        own = isinstance(self._router, PolicyRouter)  # what others keep may be needed outside of inference mode
        with torch.inference_mode() if own else contextlib.nullcontext():
            left_usd, left = (torch.from_numpy(part).to(self.device) for part in (usd, queries))
            features = self.features(x, texts, domains)
            router_calls = self._router_calls(calls, features) if self.max_calls > 1 else None
            return self._router.choose(Context(features, left_usd, left, router_calls)).cpu().numpy()

    def answer(
        self,
        queries: Queries,
        experts: Mapping[str, Expert] | None = None,
        remaining_usd: float | None = None,
        remaining_queries: int | None = None,
        *,
        compare: str | Compare | None = None,
        embeddings: npt.ArrayLike | None = None,
        at_once: int = AT_ONCE,
        allow_unbounded: bool = False,
    ) -> list[Reply]:
        """Answers queries with live experts: asks, compares the answers, asks again or delivers the best supported one.

        The queries share the remaining budget. `at_once` of them are in progress at a time, in rounds of at most one
        call per query, with one batch per expert; each is decided as if it were the next in the stream. With `at_once`
        1 they are answered one after another, exactly as in an episode.

        The budget is hard, by the rule of an episode: a call gets no more output tokens than what is left pays for,
        with no retry that it does not pay for, and what is left then loses all that the call was, or may have been,
        billed. What does not fit is cut off: that is paid, is one of the M calls, and gives no answer, neither a vote
        nor a text to deliver; `Reply.calls` has what was written. A call is not made if what is left does not pay for
        its prompt and one token, or, of an expert priced by the second, for its time-out. Calls made at the same time
        reserve the most that they can cost; a query waits for a reservation that would cut it off to end.

        Where the chosen expert fails, returns no text, or its prompt cannot be paid, the next best is asked; a failed
        call is none of the M. An expert that fails is left alone for a while, longer every time, in later queries and
        calls of this method, too.

        Args:
            queries: B queries, texts or conversations; one alone is one query. A conversation is a list of messages
                as OpenAI's API has them, and needs the experts of `load`.
            experts: by name, all of `self.experts`; `experts.pool.make_experts` makes them. Others must be
                `experts.types.LimitedExpert`s, or a budget cannot hold them. None: those that it was loaded with.
            remaining_usd: dollars for these queries and later ones; with the experts of `load` it is `left_usd`.
            remaining_queries: number of queries that this money is for, these included. None: with the experts of
                `load` as many as it pays for at the budget that the run's report recommends, else these alone.
            compare: how answers are compared: the name of the grader that filled the table ("multiple-choice",
                "number", "exact", "math"), or for free text `agents.serving.answer_match.by_similarity`. None: with
                the experts of `load` as the run's table was graded, else "exact".
            embeddings: [B, D]; None: computed with the table's encoder.
            at_once: number of queries in progress at the same time.
            allow_unbounded: asks experts without prices and limits, too, where what is left covers their mean cost.
                They can overdraw the budget.

        Returns:
            B replies, each with the delivered output and every call. A query without any answer has `text` None, and
            `stop_reason` says why.

        Raises:
            InputError: an expert is missing or cannot be held to a budget, or an argument makes no sense.
        """
        batch = as_queries(queries)
        if experts is None:
            return self._loaded(remaining_usd).answer(batch, remaining_queries, compare, embeddings, at_once)
        remaining = len(batch) if remaining_queries is None else remaining_queries
        check_stream(remaining_usd, remaining, at_once, len(batch))
        in_order = experts_in_order(experts, self.experts)
        if not allow_unbounded:
            check_limited(in_order)
        if any(isinstance(query, Chat) for query in batch):
            raise InputError("queries: conversations need the experts of Orchestrator.load(..., pool=, max_usd=)")
        decider = self.decider(as_compare("exact" if compare is None else compare))
        if not batch:
            return []
        texts = [query.text for query in batch]
        x = as_embeddings(self._encoder.encode(texts) if embeddings is None else embeddings, self.embedding_dim)
        features = self.features(x, as_texts(texts, len(x)), [query.domain for query in batch])
        assert remaining_usd is not None
        session = Session(decider, in_order, Purse(float(remaining_usd)), remaining, self.breaker)
        return session.answer_all(batch, features, self.reliability(features), at_once)

    async def aanswer(self, queries: Queries, *args: Any, **kwargs: Any) -> list[Reply]:
        """`answer` without blocking the event loop. If cancelled, the queries are answered and paid all the same."""
        return await self._in_thread(self.answer, queries, *args, **kwargs)

    def route(self, queries: Queries, remaining_queries: int | None = None) -> list[Route]:
        """Who would be asked first about each query, and why; nobody is asked. Needs the experts of `load`.

        Args:
            queries, remaining_queries: as in `answer`; each is decided as if it were the next.

        Raises:
            InputError: it was loaded without a pool, or an argument makes no sense.
        """
        return self._loaded().route(as_queries(queries), remaining_queries)

    async def aroute(self, queries: Queries, remaining_queries: int | None = None) -> list[Route]:
        """`route` without blocking the event loop."""
        return await self._in_thread(self.route, queries, remaining_queries)

    def stream(self, query: Query | str | Conversation) -> ReplyStream:
        """Answers one query with one call, whose text comes in pieces; needs the experts of `load`.

        Another expert is asked where one fails before it has written anything. An answer that breaks off later has the
        finish reason "interrupted".

        Raises:
            InputError: as `answer`.
        """
        return self._loaded().stream(*as_queries([query]))

    def _loaded(self, remaining_usd: float | None = None) -> Live:
        """What it was loaded with. Raises InputError where that is nothing."""
        if self._live is None:
            raise InputError(
                "experts: must be a mapping from names to experts, not NoneType; or load with pool=, max_usd="
            )
        if remaining_usd is not None:
            raise InputError(f"remaining_usd {remaining_usd}: goes with experts; without them max_usd of `load` counts")
        return self._live

    def estimates(self, features: Tensor) -> tuple[list[float] | None, list[float]]:
        """Of one query with features [F] the estimated scores [K], None where the policy has none, and costs [K]."""
        k = len(self.experts)
        if self.predictor is None:
            return None, list(self.description.mean_cost_usd)
        cost_usd = features[k : 2 * k] * self.cost_scale.high_usd
        return features[:k].clamp(0, 1).tolist(), cost_usd.tolist()

    async def _in_thread(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(work, *args, **kwargs))

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(MOST_THREADS, "orchestrator")

    def decider(self, compare: Compare) -> Decider:
        """What decides about queries in progress, with this comparison of their answers."""
        names, mean_cost_usd = self.experts, self.description.mean_cost_usd
        return Decider(self._router, names, mean_cost_usd, compare, self.cost_scale, self._evidence_model)

    def _check_calls(self, calls: Calls | None, n: int) -> None:
        c = self.max_calls - 1
        if calls is None:
            return
        if c == 0:
            raise InputError("calls: this policy asks one expert a query")
        if calls.asked.shape != (n, c) or calls.group.shape != (n, c) or calls.made.shape != (n,):
            raise InputError(f"calls: asked {list(calls.asked.shape)}: asked and group must be [{n}, {c}], made [{n}]")
        if calls.evidence is not None and calls.evidence.shape != (n, c):
            raise InputError(f"calls: evidence {list(calls.evidence.shape)}: must be [{n}, {c}]")

    def _router_calls(self, calls: Calls | None, features: Tensor) -> Calls:
        """The calls as a router with several calls takes them, with the vote count, for queries [B, F]."""
        k, m, device = len(self.experts), self.max_calls, features.device
        if calls is None:
            return calls_from_features(torch.zeros(len(features), 4 * k + 3, device=device), m)
        if calls.features is not None:
            return calls
        asked, group, made = (part.to(device) for part in (calls.asked, calls.group, calls.made))
        evidence = torch.zeros(asked.shape, device=device) if calls.evidence is None else calls.evidence.to(device)
        votes = updated(self.reliability(features).gather(1, asked.clamp(min=0)), evidence, VOTE_WEIGHT)
        models = shared_models(self.experts, device)
        counted = count_votes(asked, asked >= 0, group, vote_weight(votes), models)
        polled = call_features(k, asked, asked >= 0, counted, m, evidence)
        polled[:, -1] = made / m
        return calls_from_features(polled, m)

    @torch.no_grad()
    def features(self, x: np.ndarray, texts: Sequence[str] | None, domains: Sequence[str] | None = None) -> Tensor:
        """The policy's features of queries [B, F], from their embeddings [B, D], texts and domains, [B] each."""
        embeddings = torch.from_numpy(x).to(self.device)
        if self.predictor is None:
            return embeddings
        return estimate_features(self.predictor.predict(embeddings, texts, domains), self.cost_scale)

    def reliability(self, features: Tensor) -> Tensor:
        """[B, K], the estimated probabilities that experts are right; without estimates all 0.5."""
        if self.predictor is None:
            return features.new_full((len(features), len(self.experts)), 0.5)
        return features[:, : len(self.experts)].clamp(0, 1)  # estimated scores come first

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """The embeddings of B texts, [B, D], which are not written to the cache on disk."""
        with self._encoding:  # tokenizers are not made for several threads
            return self._encoder.embed(texts)  # type: ignore[no-any-return]

    @functools.cached_property
    def _encoder(self) -> Any:
        from experts.encoder import Encoder

        if not self.encoder.get("model"):
            raise InputError("embeddings: the training table does not say how to make them")
        return Encoder(self.encoder["model"], max_tokens=self.encoder.get("max_tokens"))

    def router(self, table: ExpertTable) -> Router:
        """The router for `evaluate` on a table with the same experts, of queries that were not trained on."""
        if self.predictor is None:
            return self._router
        router = copy(self._router)
        router.features = estimate_features(predict_all(self.predictor, table), self.cost_scale)
        return router

    def evidence(self, table: ExpertTable) -> Tensor | None:
        """What the calls of a table tell of their answers, [N, K] in log-odds of being right, for `make_rules` and
        environments; None where the policy does not observe it."""
        if self._evidence_model is None or not isinstance(self.predictor, Predictor):
            return None
        return table_evidence(self._evidence_model, table, predict_all(self.predictor, table))

    def add_expert(
        self,
        name: str,
        embeddings: npt.ArrayLike,
        scores: npt.ArrayLike,
        costs_usd: npt.ArrayLike,
        texts: Sequence[str] | None = None,
        answers: Sequence[str | None] | None = None,
    ) -> None:
        """Adds an expert without training, from its scores and costs on a few hundred queries.

        Its score and cost are regressed on the estimates of the other experts (`Predictor.with_expert`), and the value
        of the budget is computed again with it. What was trained for the others stays; `save` writes the result. With
        several calls per query its answers are taken to agree with the others' as an average expert's do.

        Args:
            name: becomes the last of `experts`.
            embeddings: [m, D], the queries; training queries may be among them.
            scores: [m], in [0, 1].
            costs_usd: [m], not negative.
            texts: [m], the queries' texts.
            answers: [m], its short answers in normal form, None where it gave none; used with several calls per query.

        Raises:
            InputError: the name is taken, the arrays do not fit, or the policy has no estimates.
        """
        if not isinstance(self.predictor, Predictor) or not isinstance(self.policy, BasePolicy):
            raise InputError("add_expert: needs a bid-price policy; this one has no estimates to extend")
        if name in self.experts:
            raise InputError(f"expert {name}: there is already one of this name")
        x = np.asarray(embeddings, dtype=np.float32)
        score, cost_usd = np.asarray(scores, dtype=np.float32), np.asarray(costs_usd, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.embedding_dim or len(x) < 2:
            raise InputError(f"embeddings are {list(x.shape)}, not [2 or more, {self.embedding_dim}]")
        texts = as_texts(texts, len(x))
        if score.shape != x.shape[:1] or cost_usd.shape != x.shape[:1]:
            raise InputError(f"scores {list(score.shape)}, costs_usd {list(cost_usd.shape)}: must be [{len(x)}]")
        if not (np.isfinite(x).all() and ((score >= 0) & (score <= 1)).all() and np.isfinite(cost_usd).all()):
            raise InputError("embeddings and costs_usd must be finite, scores 0 to 1")
        if (cost_usd < 0).any():
            raise InputError("costs_usd must not be negative")
        if answers is not None and len(answers) != len(x):
            raise InputError(f"{len(answers)} answers for {len(x)} embeddings")
        device = self.device
        queries, score_rows, cost_rows = (torch.from_numpy(array).to(device) for array in (x, score, cost_usd))
        grown = add_expert(
            self.policy, self.description, self.predictor, name, queries, score_rows, cost_rows, texts, answers
        )
        self._set_policy(*grown)
        if self._evidence_model is not None:
            self._evidence_model = self._evidence_model.with_expert()

    def save(self, run_dir: str | os.PathLike) -> None:
        """Writes the policy so that `load` reads it."""
        directory = Path(run_dir) / "policy"
        if isinstance(self.policy, StoredRouter) and self.predictor is not None:
            return save_router(directory, self.policy.router, self.predictor, self.description)
        if isinstance(self.policy, Router):
            raise InputError("save: this policy is a function, which Leeroo cannot store; store what it is made of")
        predictor = self.predictor if isinstance(self.predictor, Predictor) else None
        save_policy(directory, self.policy, self.description, predictor, self._evidence_model)
