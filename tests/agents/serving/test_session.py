"""Policies that drive real experts: the tiny models that ship, and a server on loopback."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import Orchestrator
from agents.estimators.evidence import VOTE_WEIGHT, updated
from agents.evaluation.evaluate import evaluate
from agents.policies.answer_model import Calls
from agents.routers.function import from_function
from agents.serving.answer_match import by_normal_form, by_similarity
from agents.serving.asking import checked_answer
from agents.serving.reply import Reply
from experts.encoder import Encoder
from experts.grading import grade_exact
from experts.pool import load_pool, make_experts
from experts.spending import NOT_ASKED, SpendCap
from experts.types import Answer, Expert, Query
from leeroo_env import ExpertTable, InputError
from leeroo_env.dynamics import make_rules
from tests.agents.serving.orchestrators import NAMES, SecondOpinion, orchestrator_of
from tests.conftest import KEY
from tests.experts.collecting import make_queries, write_pool
from tests.experts.collecting import run as collect_table
from tests.experts.openai_server import OpenAIServer

ROOT = Path(__file__).parents[3]


# ---------------------------------------------------------------------------------------------------------------------
# The models that ship


@pytest.fixture(scope="module")
def trained(tiny: ExpertTable) -> Orchestrator:
    return orchestrator_of(tiny)


@pytest.fixture(scope="module")
def tiny_pool() -> dict[str, Expert]:
    pool = load_pool(ROOT / "experts" / "tiny" / "pool.yaml")
    return {expert.name: expert for expert in make_experts(pool, None, SpendCap())}


def queries_of(table: ExpertTable, rows: np.ndarray) -> list[Query]:
    columns = ("query_id", "text", "domain", "reference")
    return [Query(*(table.queries[name][int(row)].as_py() for name in columns)) for row in rows]


def play(
    orchestrator: Orchestrator, experts: dict[str, Expert], table: ExpertTable, rows: np.ndarray, usd: float
) -> list[Reply]:
    """The stream of an episode live, one query after another."""
    x = table.embeddings[rows].float().numpy()
    return orchestrator.answer(queries_of(table, rows), experts, usd, embeddings=x, at_once=1)


def assert_plays_alike(
    orchestrator: Orchestrator, router: Any, experts: dict[str, Expert], table: ExpertTable, usd: float
) -> list[Reply]:
    """An episode of the evaluation and the same one live: experts asked, scores, costs."""
    reliability, evidence = router.features[:, : len(table.experts)].clamp(0, 1), orchestrator.evidence(table)
    if evidence is not None:
        reliability = updated(reliability, evidence, VOTE_WEIGHT)
    rules = make_rules(table, "test", 24, reliability=reliability, evidence=evidence)
    result = evaluate(router, rules, [usd], episodes=1)
    replies = play(orchestrator, experts, table, result.rows[0], usd * 24)
    assert [reply.calls[0].expert for reply in replies] == [table.experts[k] for k in result.chosen[0]]
    assert [grade_exact(reply.text or "", reply.query).score for reply in replies] == result.scored[0].tolist()
    calls = [[call.expert for reply in replies for call in reply.calls].count(name) for name in table.experts]
    np.testing.assert_allclose(calls, result.calls[0] * 24)
    spent_usd = float(result.cost_usd[0]) * 24
    assert sum(reply.cost_usd for reply in replies) == pytest.approx(spent_usd, rel=1e-3), (
        "less than a token may be left"
    )
    return replies


def test_a_policy_is_live_as_from_the_table(tiny: ExpertTable, trained: Orchestrator, tiny_pool: dict[str, Expert]):
    replies = assert_plays_alike(trained, trained.router(tiny), tiny_pool, tiny, 6e-5)
    assert {(len(reply.calls), reply.stop_reason) for reply in replies} == {(1, "max calls")}


def test_a_policy_that_asks_several_is_live_as_from_the_table(tiny: ExpertTable, tiny_pool: dict[str, Expert]):
    orchestrator = orchestrator_of(tiny, max_calls=3)
    orchestrator.policy.network.call_value.later_weight.fill_(1.0)  # so that it asks more than twice
    replies = assert_plays_alike(orchestrator, orchestrator.router(tiny), tiny_pool, tiny, 6e-5)
    assert len({len(reply.calls) for reply in replies}) > 1, "it asks more where that is worth it"
    assert {reply.stop_reason for reply in replies} == {"policy", "max calls"}


def test_evidence_is_live_as_from_the_table(tiny: ExpertTable, tiny_pool: dict[str, Expert], tmp_path: Path):
    """What transformers say of their tokens, lengths and costs: the same calls as in the episode; stored and loaded."""
    made = orchestrator_of(tiny, max_calls=3, told=True)
    made.policy.network.call_value.later_weight.fill_(1.0)  # so that it asks more than once
    made.save(tmp_path)
    orchestrator = Orchestrator.load(tmp_path)
    evidence, before = orchestrator.evidence(tiny), made.evidence(tiny)
    assert evidence is not None and before is not None and float(evidence.std()) > 0.5
    assert float((evidence - before).abs().mean()) < 0.01, "estimates are stored with fewer digits"
    replies = assert_plays_alike(orchestrator, orchestrator.router(tiny), tiny_pool, tiny, 1e-4)
    assert max(len(reply.calls) for reply in replies) > 1


def test_votes_are_live_as_from_the_table(
    tiny: ExpertTable, trained: Orchestrator, tiny_pool: dict[str, Expert], monkeypatch: pytest.MonkeyPatch
):
    features = trained.router(tiny).features
    assert isinstance(features, torch.Tensor)
    router = SecondOpinion((2, 0, 4), 5, features)
    monkeypatch.setattr(trained, "_router", router)
    replies = assert_plays_alike(trained, router, tiny_pool, tiny, 6e-5)
    assert {(len(reply.calls), reply.stop_reason) for reply in replies} == {(2, "policy"), (3, "max calls")}
    for reply in replies:
        answers = {call.expert: call.answer for call in reply.calls}
        assert reply.supporters == [name for name, answer in answers.items() if answer == reply.answer]
        assert reply.expert in reply.supporters and reply.answer == answers[reply.expert]
        assert all(call.cost_usd > 0 and call.latency_s > 0 and call.completion_tokens > 0 for call in reply.calls)
        assert by_normal_form("exact")(reply.query, [reply.text or ""]) == [reply.answer]


def test_side_by_side_answers_the_same_where_money_is_no_object(
    tiny: ExpertTable, trained: Orchestrator, tiny_pool: dict[str, Expert], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trained, "_router", SecondOpinion((2, 0, 4), 5))
    rows = tiny.rows("test")[:40].numpy()
    one_by_one = play(trained, tiny_pool, tiny, rows, 1.0)
    together = trained.answer(queries_of(tiny, rows), tiny_pool, 1.0, embeddings=tiny.embeddings[rows].float().numpy())
    for one, other in zip(one_by_one, together, strict=True):
        assert (one.text, one.expert, one.supporters, one.cost_usd) == (
            other.text,
            other.expert,
            other.supporters,
            other.cost_usd,
        )


def test_texts_alone_are_embedded_as_the_table_was(
    tiny: ExpertTable, trained: Orchestrator, tiny_pool: dict[str, Expert]
):
    rows = tiny.rows("test")[:5].numpy()
    queries = queries_of(tiny, rows)
    replies = trained.answer([query.text for query in queries], tiny_pool, 5e-4)
    given = trained.answer(queries, tiny_pool, 5e-4, embeddings=tiny.embeddings[rows].float().numpy())
    assert [(r.expert, r.text) for r in replies] == [(r.expert, r.text) for r in given]
    assert [reply.query.query_id for reply in replies] == list("01234")


# ---------------------------------------------------------------------------------------------------------------------
# A server


@pytest.fixture
def asks_again(rated: Orchestrator, monkeypatch: pytest.MonkeyPatch) -> Orchestrator:
    """alpha, then beta, and gamma where they disagree."""
    monkeypatch.setattr(rated, "_router", SecondOpinion((0, 1, 2), 3))
    return rated


@pytest.fixture
def served(server: OpenAIServer, tmp_path: Path) -> dict[str, Expert]:
    return {expert.name: expert for expert in make_experts(load_pool(write_pool(tmp_path, NAMES)), None, SpendCap())}


def says(**replies: str):
    """What the server answers, by the expert that is asked; alpha's prompt is the bare query."""
    return lambda prompt: replies[prompt.split(":")[0] if ":" in prompt else "alpha"]


def ask(
    orchestrator: Orchestrator, experts: dict[str, Expert], usd: float = 100.0, n: int = 1, **options
) -> list[Reply]:
    queries = [f"question {i}" for i in range(n)]
    return orchestrator.answer(queries, experts, usd, embeddings=np.zeros((n, 4)), **options)


def test_a_stated_confidence_is_in_the_calls_and_not_in_the_text(
    asks_again: Orchestrator, server: OpenAIServer, tmp_path: Path
):
    pool = load_pool(write_pool(tmp_path, NAMES, ", confidence: true"))
    experts = {expert.name: expert for expert in make_experts(pool, None, SpendCap())}
    server.reply = lambda prompt: "It is 7.\nConfidence: 83%" if "beta:" in prompt else "7\nConfidence: very high"
    (reply,) = ask(asks_again, experts, compare="number")
    assert reply.supporters == ["alpha", "beta"] and reply.text == "7"
    assert [(call.output, call.answer, call.confidence) for call in reply.calls] == [
        ("7", "7", None),
        ("It is 7.", "7", 0.83),
    ]


def always(choice: int, observations: torch.Tensor) -> torch.Tensor:
    return torch.full((len(observations),), choice)


def test_variants_are_actions_that_are_asked_with_their_own_settings(server: OpenAIServer, tmp_path: Path):
    path = write_pool(tmp_path, ["alpha", "beta"], ", variants: {short: {max_tokens: 1}}")
    collect_table(path, tmp_path / "table", make_queries(60))
    table = ExpertTable.load(tmp_path / "table")
    pool, spend_cap = load_pool(path), SpendCap()
    experts = {expert.name: expert for expert in make_experts(pool, table.experts, spend_cap)}
    for choice, limit in enumerate((5, 1, 5, 1)):
        router = from_function(partial(always, choice), table)
        (reply,) = Orchestrator.of(router, table).answer("what now", experts, 100.0, embeddings=np.zeros((1, 8)))
        assert reply.expert == ("alpha", "alpha@short", "beta", "beta@short")[choice]
        assert server.bodies[-1]["max_tokens"] == limit and reply.calls[0].completion_tokens <= limit


@pytest.mark.parametrize("confidence", [83, -0.1, float("nan"), "high"])
def test_a_confidence_that_is_no_probability_is_none(confidence: object):
    answer = checked_answer(Answer("7", 1, 1, 0.0, 0.0, confidence=confidence), 0.0)  # type: ignore[arg-type]
    assert (answer.text, answer.confidence, answer.error) == ("7", None, None)


def test_two_that_agree_are_enough(asks_again: Orchestrator, served: dict[str, Expert], server: OpenAIServer):
    server.reply = says(alpha="The answer is 7.", beta="7.0 apples", gamma="8")
    (reply,) = ask(asks_again, served, compare="number")
    assert (reply.text, reply.answer, reply.expert, reply.stop_reason) == ("The answer is 7.", "7", "alpha", "policy")
    assert reply.supporters == ["alpha", "beta"] and len(reply.calls) == 2
    assert [(call.prompt_tokens, call.completion_tokens) for call in reply.calls] == [(2, 4), (3, 2)]
    assert [call.cost_usd for call in reply.calls] == pytest.approx([0.01, 0.007])
    assert reply.cost_usd == pytest.approx(0.017) and reply.latency_s > 0
    assert sum(server.requests.values()) == 2


def test_the_reliable_outvote_the_others(asks_again: Orchestrator, served: dict[str, Expert], server: OpenAIServer):
    server.reply = says(alpha="7", beta="8", gamma="9")
    (reply,) = ask(asks_again, served, compare="number")
    assert (reply.expert, reply.supporters, reply.stop_reason) == ("gamma", ["gamma"], "max calls")
    assert [call.agrees for call in reply.calls] == [False, False, True]


def test_an_output_without_an_answer_agrees_with_nobody(
    asks_again: Orchestrator, served: dict[str, Expert], server: OpenAIServer
):
    server.reply = says(alpha="7", beta="no idea", gamma="none either")
    (reply,) = ask(asks_again, served, compare="number")
    assert [call.answer for call in reply.calls] == ["7", None, None]
    assert (reply.text, reply.expert, reply.supporters) == ("7", "alpha", ["alpha"])
    server.reply = says(alpha="hm", beta="no idea", gamma="none either")
    (reply,) = ask(asks_again, served, compare="number")
    assert (reply.text, reply.answer, reply.supporters) == ("none either", None, []), "the most reliable one's output"


def test_a_failed_call_loses_nothing(asks_again: Orchestrator, served: dict[str, Expert], server: OpenAIServer):
    server.behaviour = lambda prompt, time: 500 if prompt.startswith("beta") else "ok"
    server.reply = says(alpha="7", gamma="7")
    replies = ask(asks_again, served, n=3, compare="number")
    for reply in replies:
        assert [call.expert for call in reply.calls] == NAMES
        failed = reply.calls[1]
        assert failed.error and "500" in failed.error and KEY not in failed.error
        assert (failed.output, failed.answer, failed.agrees, failed.cost_usd) == ("", None, False, 0.0)
        assert (reply.text, reply.supporters, reply.stop_reason) == ("7", ["alpha", "gamma"], "max calls")
        assert reply.cost_usd == pytest.approx(sum(call.cost_usd for call in reply.calls)) and reply.cost_usd > 0


def test_nobody_answers(asks_again: Orchestrator, served: dict[str, Expert], server: OpenAIServer):
    server.behaviour = lambda prompt, time: 500
    (reply,) = ask(asks_again, served)
    assert (reply.text, reply.answer, reply.expert, reply.supporters, reply.cost_usd) == (None, None, None, [], 0)
    assert all(call.error for call in reply.calls) and len(reply.calls) == 3
    assert reply.stop_reason == "failed" and reply.billed_usd > 0, "a reply of status 500 may have been billed"


def test_an_expert_that_raises_has_failed(asks_again: Orchestrator, served: dict[str, Expert], server: OpenAIServer):
    class Broken:
        name = "beta"

        def answer(self, queries):
            raise OSError("disk on fire")

    server.reply = says(alpha="7", gamma="7")
    (reply,) = ask(asks_again, served | {"beta": Broken()}, compare="number", allow_unbounded=True)
    assert reply.calls[1].error == "OSError: disk on fire" and reply.supporters == ["alpha", "gamma"]


PROMPT_USD = (len("question 0") + 256) * 0.001  # at most


@pytest.mark.parametrize("left", [1, 2, 4, 5])
def test_a_call_gets_no_more_tokens_than_what_is_left_pays_for(
    asks_again: Orchestrator, served: dict[str, Expert], server: OpenAIServer, left: int
):
    server.reply = says(alpha="7 7 7", beta="7", gamma="7")
    (reply,) = ask(asks_again, served, PROMPT_USD + (left + 0.5) * 0.002, compare="number")
    assert [body["max_tokens"] for body in server.bodies] == [left]
    assert (len(reply.calls), reply.stop_reason) == (1, "money"), "too little is left for another prompt"
    (call,) = reply.calls
    assert call.cost_usd == call.billed_usd == pytest.approx(0.002 + 0.002 * min(left, 3)) and call.error is None
    if left < 3:
        assert (reply.text, reply.answer, reply.expert, reply.supporters) == (None, None, None, [])
        assert (call.output, call.answer, call.finish_reason) == ("7 7"[: 2 * left - 1], None, "budget")
    else:
        assert (reply.text, reply.answer, call.finish_reason) == ("7 7 7", "7", "stop")


def test_what_does_not_pay_for_the_prompt_and_a_token_makes_no_call(
    asks_again: Orchestrator, served: dict[str, Expert], server: OpenAIServer
):
    (reply,) = ask(asks_again, served, PROMPT_USD + 0.002 - 1e-6, compare="number")
    assert (reply.text, reply.stop_reason, reply.calls) == (None, "money", ()) and not server.requests


def test_a_reply_that_ends_at_the_experts_own_limit_is_an_answer(
    asks_again: Orchestrator, served: dict[str, Expert], server: OpenAIServer
):
    server.reply = says(alpha="7 7 7 7 7 7 7", beta="7", gamma="7")
    (reply,) = ask(asks_again, served, PROMPT_USD + 5 * 0.002, compare="number")
    assert (reply.text, reply.answer, reply.calls[0].finish_reason) == ("7 7 7 7 7", "7", "length")


def test_reasoning_that_the_budget_cuts_off_is_one_of_the_calls(
    rated: Orchestrator, served: dict[str, Expert], server: OpenAIServer
):
    server.reply = lambda prompt: "<think>it may be </think> 7"
    (reply,) = ask(rated, served, PROMPT_USD + len("gamma: ") * 0.001 + 3.5 * 0.002, compare="number")
    assert reply.text is None and [call.finish_reason for call in reply.calls] == ["budget"]
    assert (reply.calls[0].error, reply.stop_reason) == ("empty reply (finish_reason budget)", "money")
    assert reply.billed_usd > 0 and sum(server.requests.values()) == 1, "it is not sent again"


def test_a_call_that_does_not_fit_is_not_made(rated: Orchestrator, served: dict, server: OpenAIServer, monkeypatch):
    monkeypatch.setattr(rated, "_router", SecondOpinion((0, 2, 1), 3))
    monkeypatch.setattr(served["gamma"], "spec", served["gamma"].spec.model_copy(update={"system": "." * 5000}))
    server.reply = says(alpha="7", beta="8")
    (reply,) = ask(rated, served, 5.0, compare="number")
    assert [(call.expert, call.error) for call in reply.calls] == [("alpha", None), ("beta", None)]
    assert reply.expert == "beta" and reply.stop_reason == "money", "gamma's opinion would have decided"
    assert sum(server.requests.values()) == 2


def test_whoever_can_be_paid_answers_where_the_chosen_one_cannot(
    rated: Orchestrator, served: dict, server, monkeypatch
):
    monkeypatch.setattr(rated, "_router", SecondOpinion((2, 0, 1), 3))
    monkeypatch.setattr(served["gamma"], "spec", served["gamma"].spec.model_copy(update={"system": "." * 5000}))
    server.reply = says(alpha="7", beta="7")
    (reply,) = ask(rated, served, 5.0, compare="number")
    assert [call.expert for call in reply.calls] == ["beta", "alpha"] and reply.text == "7"


def test_the_budget_holds_side_by_side(asks_again: Orchestrator, served: dict[str, Expert], server: OpenAIServer):
    server.reply = says(alpha="1 1 1 1 1", beta="2 2 2 2 2", gamma="3 3 3 3 3")
    server.delay_s = 0.02  # so that calls meet there on a busy machine, too
    usd = 0.8
    replies = ask(asks_again, served, usd, n=40, at_once=40, compare="exact")
    spent_usd = sum(reply.cost_usd for reply in replies)
    assert usd - 0.28 < spent_usd <= usd, "it is spent until it does not pay for a prompt"
    billed = sum(0.001 * len(prompt.split()) for prompt in server.requests.elements())
    billed += sum(0.002 * body["max_tokens"] for body in server.bodies)
    assert spent_usd == pytest.approx(billed)
    assert server.most_at_once > 1
    assert {reply.stop_reason for reply in replies} >= {"money"}


def test_a_query_sees_the_stream_from_its_own_place(asks_again: Orchestrator, served: dict, server: OpenAIServer):
    server.reply = says(alpha="7", beta="7", gamma="7")
    router: Any = asks_again._router
    replies = ask(asks_again, served, 10.0, n=2, at_once=1, remaining_queries=9, compare="number")
    first, *_ = costs = [call.cost_usd for reply in replies for call in reply.calls]
    assert [left for _, left in router.told] == [9, 9, 9, 8, 8, 8]
    spent = [0.0, first, sum(costs[:2]), sum(costs[:2]), sum(costs[:3]), sum(costs)]
    assert [usd for usd, _ in router.told] == pytest.approx([10 - part for part in spent])
    router.told.clear()
    ask(asks_again, served, 10.0, n=2, at_once=2, remaining_queries=9, compare="number")
    assert [left for _, left in router.told] == [9] * 6
    assert [usd for usd, _ in router.told] == pytest.approx([10.0] * 2 + [10 - first] * 2 + [10 - sum(costs[:2])] * 2)


def test_the_spend_cap_of_the_pool_holds_too(asks_again: Orchestrator, server: OpenAIServer, tmp_path: Path):
    experts = make_experts(load_pool(write_pool(tmp_path, NAMES)), None, SpendCap(0.0))
    (reply,) = ask(asks_again, {expert.name: expert for expert in experts})
    assert reply.text is None and {call.error for call in reply.calls} == {NOT_ASKED} and reply.stop_reason == "money"
    assert not server.requests


def test_nobody_is_asked_twice_about_a_query(rated: Orchestrator, served: dict, server: OpenAIServer, monkeypatch):
    monkeypatch.setattr(rated, "_router", SecondOpinion((0, 0, 1), 3))
    server.reply = says(alpha="7", beta="7", gamma="8")
    (reply,) = ask(rated, served, compare="number")
    assert [(call.expert, call.error) for call in reply.calls] == [("alpha", None), ("gamma", None), ("beta", None)]
    assert reply.supporters == ["gamma"]


def test_a_text_is_one_query_and_so_is_a_query(rated: Orchestrator, served: dict[str, Expert], server: OpenAIServer):
    server.reply = says(gamma="17")
    text = "What is 12 plus 5?"
    queries: list[Any] = [text, np.str_(text), Query("q", text), [text], (text,), iter([text]), np.array([text])]
    for query in queries:
        (reply,) = rated.answer(query, served, 100.0, embeddings=np.zeros((1, 4)), compare="number")
        assert reply.query.text == text and reply.text == "17"
    assert server.requests == {f"gamma: {text}": 7}


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (b"What is 12 plus 5?", "must be texts or queries in order, not bytes"),
        (None, "not NoneType"),
        (7, "not int"),
        ({"q": "What is 12 plus 5?"}, "not dict"),
        ({"What is 12 plus 5?"}, "not set"),
        ("", r"queries\[0\]: is empty"),
        (" \n", r"queries\[0\]: is empty"),
        (["a", ""], r"queries\[1\]: is empty"),
        (["a", None], r"queries\[1\]: must be a text or a query, not NoneType"),
        ([b"a"], r"queries\[0\]: must be a text or a query, not bytes"),
        ([["a"]], r"queries\[0\]: must be a text or a query, not list"),
        ([{"text": "a"}], "not dict"),
        ([Query("q", "")], r"queries\[0\]: is empty"),
        ([Query("q", None)], "not NoneType"),  # type: ignore[arg-type]
        (["half \ud83d"], r"queries\[0\]: character 5 is half a surrogate pair"),
    ],
)
def test_what_is_no_query_is_refused_before_anything_is_asked(
    rated: Orchestrator, served: dict[str, Expert], server: OpenAIServer, queries: Any, message: str
):
    with pytest.raises(InputError, match=message):
        rated.answer(queries, served, 100.0, embeddings=np.zeros((1, 4)), compare="number")
    assert not server.requests


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (None, "must be a mapping from names to experts, not NoneType"),
        ([], "not list"),
        ({name: "alpha" for name in NAMES}, "alpha: str has no method answer"),
    ],
)
def test_what_are_no_experts_is_refused(rated: Orchestrator, experts: Any, message: str):
    with pytest.raises(InputError, match=message):
        rated.answer("question", experts, 100.0, embeddings=np.zeros((1, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"usd": -1.0}, "remaining_usd -1.0"),
        ({"usd": float("nan")}, "remaining_usd nan"),
        ({"remaining_queries": 0}, "remaining_queries 0"),
        ({"at_once": 0}, "at_once 0"),
        ({"usd": "much"}, "remaining_usd much"),
        ({"usd": None}, "remaining_usd None"),
        ({"usd": float("inf")}, "remaining_usd inf"),
        ({"remaining_queries": 1.5}, "remaining_queries 1.5"),
        ({"at_once": "two"}, "at_once two"),
        ({"compare": 7}, "must be a name or a function, not int"),
        ({"compare": "vibes"}, "no normal form named 'vibes'"),
    ],
)
def test_senseless_arguments_are_refused(rated: Orchestrator, served: dict[str, Expert], options: dict, message: str):
    with pytest.raises(InputError, match=message):
        ask(rated, served, **options)


def test_missing_experts_and_embeddings_are_named(rated: Orchestrator, served: dict[str, Expert]):
    with pytest.raises(InputError, match="no expert named 'beta'; there are alpha, gamma"):
        ask(rated, {name: served[name] for name in ("alpha", "gamma")})
    with pytest.raises(InputError, match="does not say how to make them"):
        rated.answer(["question"], served, 1.0)
    assert rated.answer([], served, 1.0) == []


def test_choices_after_calls(asks_again: Orchestrator):
    x = np.zeros((2, 4))
    assert asks_again.choose(x, 1.0, 5).tolist() == [0, 0]
    calls = Calls(torch.tensor([[0, 1], [0, 1]]), torch.tensor([[0, 0], [0, 1]]), torch.tensor([2, 2]))
    assert asks_again.choose(x, 1.0, 5, calls=calls).tolist() == [asks_again.deliver, 2]
    failed = Calls(torch.tensor([[0, -1]]), torch.tensor([[0, -1]]), torch.tensor([2]))
    assert asks_again.choose(x[:1], 1.0, 5, calls=failed).tolist() == [2]
    with pytest.raises(InputError, match=r"must be \[1, 2\]"):
        asks_again.choose(x[:1], 1.0, 5, calls=calls)
    with pytest.raises(InputError, match=r"evidence \[2, 1\]: must be \[2, 2\]"):
        asks_again.choose(x, 1.0, 5, calls=replace(calls, evidence=torch.zeros(2, 1)))


def test_a_policy_with_one_call_takes_no_calls(rated: Orchestrator):
    calls = Calls(torch.tensor([[0]]), torch.tensor([[0]]), torch.tensor([1]))
    with pytest.raises(InputError, match="asks one expert a query"):
        rated.choose(np.zeros((1, 4)), 1.0, 5, calls=calls)


def test_free_text_is_compared_by_meaning(asks_again: Orchestrator, served: dict[str, Expert], server: OpenAIServer):
    compare = by_similarity(Encoder(), 0.7)
    server.reply = says(alpha="Paris, the French capital", beta="the capital of France, Paris", gamma="bananas")
    (reply,) = ask(asks_again, served, compare=compare)
    assert reply.supporters == ["alpha", "beta"] and reply.stop_reason == "policy"
    assert reply.text == "Paris, the French capital" and {call.answer for call in reply.calls} == {reply.text}
    server.reply = says(alpha="Paris, the French capital", beta="a purple bicycle wheel", gamma="it is Paris")
    (reply,) = ask(asks_again, served, compare=compare)
    assert len(reply.calls) == 3 and reply.supporters == ["alpha", "gamma"]
