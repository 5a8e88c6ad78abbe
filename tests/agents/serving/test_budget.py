"""The rule of the budget live: the same episodes as in the table, and nothing overdrawn by calls at the same time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from agents import Orchestrator
from agents.policies.answer_model import calls_from_features
from agents.routers import Context, Router
from agents.serving.reply import Reply
from experts.specs import ExpertSpec, OpenAISpec
from experts.types import Answer, Query
from leeroo_env import ExpertTable, InputError, dynamics
from leeroo_env.dynamics import make_rules, new_episodes
from tests.agents.serving.orchestrators import SecondOpinion, orchestrator_of

NAMES = ["shortest", "short", "middle", "long", "longest"]
TOKEN_USD = 2.0**-20  # sums and multiples of it are exact
HORIZON, MAX_TOKENS = 24, 4096


def priced_table(
    n: int = 240, names: Sequence[str] = NAMES, right: Sequence[float] = (0.35, 0.45, 0.55, 0.7, 0.8)
) -> ExpertTable:
    """Answers of a few to hundreds of tokens, which are all that they cost; the longer, the more often right."""
    rng = np.random.default_rng(3)
    tokens = np.ceil(rng.lognormal(np.log([20.0, 30.0, 60.0, 120.0, 200.0]), 0.7, size=(n, 5))).clip(1, MAX_TOKENS)
    scores = (rng.uniform(size=(n, 5)) < right).astype(np.float64)
    wrong = rng.choice(np.array(["wrong", "other", None], dtype=object), size=(n, 5))
    return ExpertTable.from_arrays(
        "priced",
        list(names),
        rng.normal(size=(n, 4)),
        scores,
        tokens * TOKEN_USD,
        split=[("train", "val", "test")[i % 3] for i in range(n)],
        answers=np.where(scores > 0, "right", wrong),
    )


class Ledger:
    """What calls were billed, and what those in progress may be."""

    def __init__(self) -> None:
        self.spent_usd = self.reserved_usd = self.most_usd = 0.0
        self._lock = threading.Lock()

    def change(self, reserved_usd: float, spent_usd: float) -> None:
        with self._lock:
            self.reserved_usd += reserved_usd
            self.spent_usd += spent_usd
            self.most_usd = max(self.most_usd, self.spent_usd + self.reserved_usd)


class TableExpert:
    """Answers from a table, as many tokens as its cost there; keeps to its limits."""

    def __init__(self, table: ExpertTable, k: int, ledger: Ledger, usd_per_mtok_in: float = 0.0, fails: float = 0.0):
        self.table, self.k, self.ledger, self.fails = table, k, ledger, fails
        self.name = table.experts[k]
        self.spec = ExpertSpec(
            name=self.name,
            model="table",
            max_tokens=MAX_TOKENS,
            usd_per_mtok_in=usd_per_mtok_in,
            usd_per_mtok_out=1e6 * TOKEN_USD,
        )
        self.random = np.random.default_rng(k)

    def answer(self, queries: Sequence[Query], limits_usd: Sequence[float] | None = None) -> list[Answer]:
        assert limits_usd is not None and len(limits_usd) == len(queries)
        self.ledger.change(sum(limits_usd), 0.0)
        answers = [self._answer(*pair) for pair in zip(queries, limits_usd, strict=True)]
        self.ledger.change(-sum(limits_usd), sum(answer.billed_usd for answer in answers))
        return answers

    def _answer(self, query: Query, limit_usd: float) -> Answer:
        row = int(query.query_id)
        needed = round(float(self.table.costs_usd[row, self.k]) / TOKEN_USD)
        most = self.spec.affordable_tokens(query, limit_usd)
        assert most > 0, "it is not asked where not even a token is paid for"
        is_cut = needed > most
        written = min(needed, most)
        prompt = self.spec.most_prompt_tokens(query)
        cost_usd = self.spec.price.cost_usd(prompt, written, 0.0)
        if self.random.uniform() < self.fails:
            return Answer("", 0, 0, 0.0, 0.0, "down", lost_usd=min(limit_usd, self.random.uniform() * cost_usd))
        number = int(self.table.answer_ids[row, self.k])
        text = "right" if is_cut else f"answer {number}" if number >= 0 else "none"
        return Answer(text, prompt, written, cost_usd, 0.0, finish_reason="budget" if is_cut else "stop")


def compare(query: Query, outputs: Sequence[str]) -> list[str | None]:
    return [None if output == "none" else output for output in outputs]


def in_table(
    router: Any, rules: Any, rows: list[int], usd: float
) -> tuple[list[list[tuple[str, float, bool]]], list[float], float]:
    """An episode: for each query its calls, as expert, dollars and whether cut off; the scores; the dollars left."""
    m = router.max_calls
    state = new_episodes(rules, torch.tensor([rows]), torch.tensor([usd], dtype=torch.float64))
    calls: list[list[tuple[str, float, bool]]] = [[] for _ in range(HORIZON)]
    scores = [0.0] * HORIZON
    while (t := int(state.t)) < HORIZON:
        made = calls_from_features(state.call_features, m) if m > 1 else None
        seen = router.features[dynamics.current_rows(state)].float()
        action = router.choose(Context(seen, state.left_usd, HORIZON - state.t, made))
        left_usd = float(state.left_usd)
        state, outcome = dynamics.step(rules, state, action)
        if int(action) < len(NAMES) and left_usd > 0:  # without a cent there is no call
            calls[t].append((rules.table.experts[int(action)], float(outcome.cost_usd), bool(outcome.cut_off)))
        scores[t] += float(outcome.score)
    return calls, scores, float(state.left_usd)


def queries_of(rows: Sequence[int]) -> list[Query]:
    return [Query(str(row), f"question {row}") for row in rows]


def play(orchestrator: Orchestrator, experts: Any, rows: list[int], usd: float, at_once: int) -> list[Reply]:
    x = priced.embeddings[rows].float().numpy()
    return orchestrator.answer(queries_of(rows), experts, usd, embeddings=x, at_once=at_once, compare=compare)


priced = priced_table()


@pytest.fixture(scope="module", params=[1, 4])
def orchestrator(request: pytest.FixtureRequest) -> Orchestrator:
    return orchestrator_of(priced, request.param, HORIZON)


def assert_same_episode(
    orchestrator: Orchestrator, router: Any, tokens_per_query: int, seed: int, priced: ExpertTable = priced
) -> list[Reply]:
    names = priced.experts
    generator = torch.Generator().manual_seed(seed)
    rows = priced.rows("test")[torch.randperm(80, generator=generator)[:HORIZON]].tolist()
    queries, x = queries_of(rows), priced.embeddings[rows].float().numpy()
    seen = orchestrator.features(x, [query.text for query in queries], [""] * HORIZON)
    features = torch.zeros(len(priced.embeddings), seen.shape[1])
    features[rows] = seen  # to the last bit: choices between equals would else differ
    router.features = features
    rules = make_rules(priced, "test", HORIZON, max_calls=router.max_calls, reliability=features[:, :5].clamp(0, 1))
    usd = HORIZON * tokens_per_query * TOKEN_USD
    calls, scores, left_usd = in_table(router, rules, rows, usd)
    ledger = Ledger()
    experts = {name: TableExpert(priced, k, ledger) for k, name in enumerate(names)}
    replies = play(orchestrator, experts, rows, usd, at_once=1)
    live = [[(c.expert, c.billed_usd, c.finish_reason == "budget") for c in reply.calls] for reply in replies]
    assert live == calls
    delivered = [(row, reply.expert) for row, reply in zip(rows, replies, strict=True)]
    assert [0.0 if e is None else float(priced.scores[row, names.index(e)]) for row, e in delivered] == scores
    assert usd - ledger.spent_usd == left_usd
    return replies


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("tokens_per_query", [1, 10, 25, 60, 200, 800])
def test_an_episode_is_live_as_in_the_table(orchestrator: Orchestrator, tokens_per_query: int, seed: int):
    replies = assert_same_episode(orchestrator, orchestrator.router(priced), tokens_per_query, seed)
    is_cut = [any(call.finish_reason == "budget" for call in reply.calls) for reply in replies]
    if tokens_per_query <= 10:
        assert any(is_cut) and replies[-1].stop_reason == "money" and replies[-1].text is None
    if tokens_per_query >= 800:
        assert not any(is_cut)


class AsksAll(Router):
    """Asks the first four, always."""

    max_calls = 4

    def __init__(self) -> None:
        self.features: Any = None
        self.seen: list[torch.Tensor] = []

    def choose(self, context: Context) -> torch.Tensor:
        assert context.calls is not None and context.calls.features is not None
        self.seen.append(context.calls.features[:, 5:])  # live the first say who may be asked
        return context.calls.made


def test_so_is_one_with_variants_of_a_model(monkeypatch: pytest.MonkeyPatch):
    """The same calls, money, observations and delivered answers; these are others than where all are different
    models."""
    chances = torch.tensor([0.5, 0.55, 0.52, 0.6, 0.5, *[0.1] * 5])
    delivered = []
    for names in (["one@a", "one", "one@b", "two", "two@a"], NAMES):
        table, router = priced_table(names=names), AsksAll()
        orchestrator = orchestrator_of(table, 1, HORIZON, planned=False)
        monkeypatch.setattr(orchestrator, "_router", router)
        monkeypatch.setattr(orchestrator, "features", lambda x, *_: chances.repeat(len(x), 1))
        assert_same_episode(orchestrator, router, 60, 0, table)
        router.seen.clear()
        replies = assert_same_episode(orchestrator, router, 800, 1, table)
        in_table, live = torch.cat(router.seen).chunk(2)
        assert torch.equal(in_table, live)
        delivered.append([reply.answer for reply in replies])
    assert delivered[0] != delivered[1]


@pytest.mark.parametrize("tokens_per_query", [5, 30, 100])
def test_so_is_one_of_a_router_that_heeds_no_mask(monkeypatch: pytest.MonkeyPatch, tokens_per_query: int):
    orchestrator = orchestrator_of(priced, 1, HORIZON, planned=False)
    router = SecondOpinion((1, 0, 3), 5)
    monkeypatch.setattr(orchestrator, "_router", router)
    for seed in range(3):
        assert_same_episode(orchestrator, router, tokens_per_query, seed)


# ---------------------------------------------------------------------------------------------------------------------
# Calls at the same time


@pytest.mark.parametrize("at_once", [2, 40])
@pytest.mark.parametrize("seed", range(5))
def test_calls_at_the_same_time_never_overdraw(orchestrator: Orchestrator, seed: int, at_once: int):
    rng = np.random.default_rng(seed)
    ledger = Ledger()
    prices = rng.choice([0.0, 0.01, 0.3], size=5)
    experts = {
        name: TableExpert(priced, k, ledger, prices[k], fails=float(rng.choice([0.0, 0.3])))
        for k, name in enumerate(NAMES)
    }
    rows = priced.rows("test").tolist()
    usd = float(np.exp(rng.uniform(np.log(1.0), np.log(400.0)))) * len(rows) * TOKEN_USD
    replies = play(orchestrator, experts, rows, usd, at_once)
    assert ledger.most_usd <= usd * (1 + 1e-9)
    assert sum(reply.billed_usd for reply in replies) == pytest.approx(ledger.spent_usd)
    for reply in replies:
        assert (reply.text is None) == (not any(call.finish_reason == "stop" for call in reply.calls))


def test_no_reservation_cuts_an_answer_off(monkeypatch: pytest.MonkeyPatch):
    """A query waits where a call of the same round holds money that it does not use."""
    orchestrator = orchestrator_of(priced, 1, HORIZON, planned=False)
    ledger = Ledger()
    experts = {name: TableExpert(priced, k, ledger) for k, name in enumerate(NAMES)}
    rows = priced.rows("test")[:12].tolist()
    needed_usd = float(priced.costs_usd[rows].amax(dim=1).double().sum())
    usd = needed_usd + MAX_TOKENS * TOKEN_USD
    replies = play(orchestrator, experts, rows, usd, at_once=12)
    assert all(call.finish_reason == "stop" for reply in replies for call in reply.calls)
    assert all(reply.text is not None for reply in replies)


# ---------------------------------------------------------------------------------------------------------------------
# Experts that no budget can hold


class Plain:
    """Without prices."""

    def __init__(self, name: str):
        self.name = name

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        return [Answer("7", 1, 1, 1e-6, 0.0) for _ in queries]


class Priced(Plain):
    """With prices, but it takes no limits."""

    spec = OpenAISpec(
        name="long", backend="openai", model="m", base_url="http://x/v1", usd_per_mtok_in=1.0, usd_per_mtok_out=1.0
    )


class Limits(Plain):
    """Takes limits, but has no prices."""

    def answer(self, queries: Sequence[Query], limits_usd: Sequence[float] | None = None) -> list[Answer]:
        return super().answer(queries)


@pytest.mark.parametrize("kind", [Plain, Priced, Limits])
def test_an_expert_that_no_budget_can_hold_is_refused(kind: type[Plain]):
    orchestrator = orchestrator_of(priced, 1, HORIZON, planned=False)
    experts: dict[str, Any] = {name: TableExpert(priced, k, Ledger()) for k, name in enumerate(NAMES)}
    experts["long"] = kind("long")
    with pytest.raises(InputError, match=f"experts: long: {kind.__name__} cannot be held to a budget.*allow_unbounded"):
        play(orchestrator, experts, [5], 1.0, 1)
    x = priced.embeddings[[5]].float().numpy()
    (reply,) = orchestrator.answer(queries_of([5]), experts, 1.0, embeddings=x, allow_unbounded=True)
    assert reply.text is not None
