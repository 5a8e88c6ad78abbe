"""The value of one more call: the known optimum is found, and kept to within the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

import train
from agents import Orchestrator
from agents.estimators import Estimates
from agents.estimators.ensemble import predict_all
from agents.evaluation.evaluate import Result, evaluate
from agents.policies.answer_model import AnswerModel, Calls, simulate_answers
from agents.policies.bid_price import estimate_features
from agents.policies.call_value import (
    FORBIDDEN,
    Answers,
    CallValue,
    calls_from_table,
    fit_call_value,
    not_asked,
)
from agents.policies.description import PolicyDescription, describe_policy
from agents.policies.io import load_policy, save_policy
from agents.policies.multi_call import start_from_plan
from agents.routers.policy import PolicyRouter
from agents.training.config import TrainConfig
from agents.training.factory import make_model
from agents.training.trainer import Trainer
from leeroo_env import ExpertTable, InputError, dynamics
from leeroo_env.builtin import resolve
from tests.synthetic import DOUBT_COST_USD, RIGHT, doubting_optimum_usd, doubting_table

PAIR_USD = sum(DOUBT_COST_USD[:2])
FEW = {"QUERIES": 2_000, "STEPS": 150, "BATCH": 500}


@pytest.fixture(scope="module", autouse=True)
def short_fits():
    """Fewer steps: these tests need no precision."""
    with pytest.MonkeyPatch.context() as patch:
        few_of_answers = {"LOADING_STEPS": 40, "STEPS": 120, "BATCH": 400}
        weighing = {"WEIGHING_QUERIES": 1_024}
        for module, few in (("answer_model", few_of_answers), ("call_value", FEW), ("multi_call", weighing)):
            for name, value in few.items():
                patch.setattr(f"agents.policies.{module}.{name}", value)
        yield


def flat_estimates(table: ExpertTable) -> Estimates:
    """Mean scores and costs, the same for all queries."""
    score, cost_usd = (x.expand(len(table), -1).contiguous() for x in (table.mean_score(), table.mean_cost_usd()))
    return Estimates(score, cost_usd)


@pytest.fixture(scope="module")
def doubting() -> ExpertTable:
    return doubting_table()


@pytest.fixture(scope="module")
def call_value(doubting: ExpertTable) -> CallValue:
    rows = doubting.rows("train")
    return fit_call_value(doubting, rows, flat_estimates(doubting)[rows], max_calls=3)


def planned(
    table: ExpertTable, max_calls: int, horizon: int = 16
) -> tuple[PolicyRouter, dynamics.Rules, PolicyDescription]:
    """The agent before it has trained, the rules it is tested by, and what is stored with it."""
    estimates = flat_estimates(table)
    reliability = estimates.reliability()
    features = estimate_features(estimates, table.cost_scale())
    config = TrainConfig(max_calls=max_calls, horizon=horizon, n_envs=4)
    rules = dynamics.make_rules(table, "train", horizon, None, 0.02, max_calls, reliability, features)
    model, settings = make_model(config, "bid-price", rules)
    rows = table.rows("train")
    start_from_plan(model.policy, rules, rows, estimates[rows])  # type: ignore[arg-type]
    description = describe_policy(rules, "ppo", settings["policy_kwargs"], "bid-price")
    test = dynamics.make_rules(table, "test", horizon, reliability=reliability, features=features)
    return PolicyRouter(model.policy, description, features), test, description


@pytest.fixture(scope="module")
def agent(doubting: ExpertTable) -> tuple[PolicyRouter, dynamics.Rules, PolicyDescription]:
    return planned(doubting, max_calls=3)


def simulate_calls(call_value: CallValue, chance: torch.Tensor, price: torch.Tensor, answers: Answers) -> torch.Tensor:
    """Calls experts for n queries for as long as a call is worth its price.

    Args:
        call_value: the policy.
        chance: [n, K], estimated, that experts are right.
        price: [n, K], of calls, in score.
        answers: to these queries.

    Returns:
        The experts called, [n, M], -1 where there is no call any more.
    """
    n, k = chance.shape
    asked = torch.full((n, call_value.max_calls), -1, device=chance.device)
    playing = torch.arange(n, device=chance.device)
    for call in range(call_value.max_calls):
        so_far, paid = asked[playing], price[playing]
        calls = calls_from_table(so_far, answers[playing])
        estimates = call_value(chance[playing], paid, calls, not_asked(so_far, k))
        net, place = (estimates.gain - paid.gather(1, estimates.experts)).max(dim=1)
        goes_on = (net > 0) | (call == 0)
        playing, place = playing[goes_on], place[goes_on]
        asked[playing, call] = estimates.experts[goes_on].gather(1, place[:, None]).squeeze(1)
    return asked


def test_the_expensive_expert_is_called_where_the_cheap_ones_differ(doubting: ExpertTable, call_value: CallValue):
    rows = doubting.rows("test")
    estimates = flat_estimates(doubting)[rows]
    chance, cost = estimates.score, estimates.cost_usd / DOUBT_COST_USD[2]
    answer_ids = doubting.answer_ids[rows].long()
    asked = simulate_calls(call_value, chance, 0.3 * cost, Answers.of(answer_ids))
    differ = answer_ids[:, 0] != answer_ids[:, 1]
    assert set(map(tuple, asked[:, :2].sort(dim=1).values.tolist())) == {(0, 1)}
    assert torch.equal(asked[:, 2] == 2, differ), "and no other where they agree"
    once = simulate_calls(call_value, chance, 30 * cost, Answers.of(answer_ids))
    assert (once[:, 1:] < 0).all() and (once[:, 0] < 2).all(), "nothing else is worth that much"


def test_fitting_twice_gives_the_same_bits(doubting: ExpertTable, call_value: CallValue):
    rows = doubting.rows("train")
    again = fit_call_value(doubting, rows, flat_estimates(doubting)[rows], max_calls=3)
    for (name, one), other in zip(call_value.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_experts_that_cannot_be_called_have_no_value(call_value: CallValue):
    chance = torch.full((4, 3), 0.5)
    none = Calls(torch.full((4, 2), -1), torch.full((4, 2), -1), torch.zeros(4, dtype=torch.int64))
    allowed = torch.tensor([[True, True, True], [False, True, True], [False, False, True], [False, False, False]])
    estimates = call_value(chance, torch.full((4, 3), 0.01), none, allowed)
    for row, may in zip(range(4), allowed, strict=True):
        worth = dict(zip(estimates.experts[row].tolist(), estimates.gain[row].tolist(), strict=True))
        assert all((gain > FORBIDDEN) == bool(may[e]) for e, gain in worth.items())


def test_the_lookahead_takes_no_second_call_that_is_not_affordable(call_value: CallValue):
    """Otherwise a cheap call would come first, and leave too little for the good one."""
    chance = torch.tensor([[0.2, 0.3, 0.9]] * 3)
    none = Calls(torch.full((3, 2), -1), torch.full((3, 2), -1), torch.zeros(3, dtype=torch.int64))
    share = torch.tensor([[0.1, 0.1, 0.8], [0.3, 0.3, 0.8], [0.6, 0.6, 0.8]])
    estimates = call_value(chance, torch.full((3, 3), 0.01), none, torch.ones(3, 3, dtype=torch.bool), share)
    second = torch.zeros(3, 3).scatter(1, estimates.experts, estimates.second)
    assert second[0, 0] > 0.5, "the good one can follow"
    assert 0.01 < second[1, 0] < 0.3, "only the other poor one can"
    assert torch.equal(second[2], torch.zeros(3)) and second[1, 2] == 0


def test_what_a_call_told_of_its_answer_decides_about_the_next(call_value: CallValue):
    evidence = torch.tensor([[-4.0, 0.0], [0.0, 0.0], [4.0, 0.0]])
    asked, group = torch.tensor([[0, -1]] * 3), torch.tensor([[0, -1]] * 3)
    calls = Calls(asked, group, torch.ones(3, dtype=torch.int64), evidence=evidence)
    allowed = torch.tensor([[False, True, True]] * 3)
    estimates = call_value(torch.full((3, 3), 0.5), torch.full((3, 3), 0.01), calls, allowed)
    assert (estimates.stop_value.diff() > 0.1).all(), "the better the evidence, the likelier the answer is right"
    assert (estimates.gain.amax(dim=1).diff() < 0).all(), "and the less is another call worth"
    blind = call_value(torch.full((3, 3), 0.5), torch.full((3, 3), 0.01), replace(calls, evidence=None), allowed)
    assert torch.equal(blind.gain[1], estimates.gain[1]), "evidence of 0 is none"


def test_experts_already_called_are_not_called_again():
    asked = torch.tensor([[2, -1], [0, 1], [-1, -1]])
    assert not_asked(asked, 3).tolist() == [[True, True, False], [False, False, True], [True, True, True]]
    calls = calls_from_table(asked, Answers.of(torch.tensor([[0, 0, 0]] * 3)))
    assert calls.made.tolist() == [1, 2, 0] and calls.group.tolist() == [[0, -1], [0, 0], [-1, -1]]


def test_later_calls_count_for_nothing_where_agreement_tells_nothing():
    """Three experts right half of the time, independently, and answers that never agree, as with free text."""
    generator = np.random.default_rng(0)
    right = generator.random((600, 3)) < 0.5
    answers = [[f"{i}-{k}" for k in range(3)] for i in range(600)]
    table = ExpertTable.from_arrays(
        "free text", ["a", "b", "c"], np.ones((600, 2)), right.astype(float), np.full((600, 3), 1e-4), answers=answers
    )
    router, rules, _ = planned(table, max_calls=3)
    weight = router.policy.network.call_value.later_weight  # type: ignore[union-attr]
    assert weight == 0
    budgets = [3e-4]  # for all of them
    assert evaluate(router, replace(rules, max_calls=3), budgets, episodes=16).calls.sum() < 1.05
    weight.fill_(1.0)
    assert evaluate(router, replace(rules, max_calls=3), budgets, episodes=16).calls.sum() > 1.5, "it was the weight"


def test_the_agent_spends_as_the_best_would(agent: tuple[PolicyRouter, dynamics.Rules, PolicyDescription]):
    """With the budget of the optimal policy (both cheap ones, the expensive one in doubt) it is nearly always right."""
    router, rules, _ = agent
    budget = 1.05 * doubting_optimum_usd()
    result = evaluate(router, rules, [1.2 * PAIR_USD, budget], episodes=64)
    assert result.score[1] > 0.95
    assert (result.cost_usd <= [1.2 * PAIR_USD, budget]).all()
    one_call = budget / DOUBT_COST_USD[2] + RIGHT * (1 - budget / DOUBT_COST_USD[2])  # about
    assert result.score[1] > one_call + 0.03
    assert result.score[0] >= RIGHT - 0.03


@pytest.mark.parametrize("max_calls", [2, 3])
def test_it_respects_the_masks(
    doubting: ExpertTable, agent: tuple[PolicyRouter, dynamics.Rules, PolicyDescription], max_calls: int
):
    router, rules, _ = agent if max_calls == 3 else planned(doubting, max_calls)
    rules = replace(rules, max_calls=max_calls)
    result = evaluate(router, rules, dynamics.budget_grid(rules), episodes=16)
    assert (result.calls <= 1 + 1e-9).all(), "no expert is called twice for a query"
    assert (result.chosen < 3).all() and (result.calls.sum(axis=1) >= 1 - 1e-9).all(), "at least one call a query"


def test_a_stored_policy_chooses_alike(agent: tuple[PolicyRouter, dynamics.Rules, PolicyDescription], tmp_path: Path):
    router, rules, description = agent
    save_policy(tmp_path / "policy", router.policy, description)
    loaded, described = load_policy(tmp_path / "policy")
    assert described.max_calls == 3
    budgets = dynamics.budget_grid(rules)[3:]
    first, second = (
        evaluate(r, rules, budgets, episodes=8) for r in (router, PolicyRouter(loaded, described, router.features))
    )
    np.testing.assert_array_equal(first.scored, second.scored)
    np.testing.assert_array_equal(first.cost_usd, second.cost_usd)


def test_training_with_several_calls_leaves_an_orchestrator(tmp_path: Path):
    table = doubting_table(n=400)
    table.save(tmp_path / "table")
    config = TrainConfig(str(tmp_path / "table"), max_calls=3, timesteps=4_000, n_envs=16, horizon=8)
    assert train.run(replace(config, run_dir=str(tmp_path / "one"))) == 0
    report = (tmp_path / "one" / "report.md").read_text()
    assert "Calls per query, of at most 3, by budget: " in report and "| cascade routing |" in report
    orchestrator = Orchestrator.load(tmp_path / "one")
    assert orchestrator.max_calls == 3
    choice = orchestrator.choose(table.embeddings[:5].numpy(), 0.01, 5)
    assert (choice < 3).all()
    too_expensive = np.full(5, 1e3)
    with pytest.raises(InputError, match="too far from the others'"):
        orchestrator.add_expert("new", table.embeddings[:5].numpy(), np.ones(5), too_expensive)
    with pytest.raises(InputError, match="1 answers for 5 embeddings"):
        orchestrator.add_expert("new", table.embeddings[:5].numpy(), np.ones(5), np.full(5, 1e-4), answers=["a"])


@pytest.fixture(scope="module")
def tiny_part() -> ExpertTable:
    """A part of the built-in table, its expert `small` the last."""
    whole = resolve("tiny", "nano,large,arithmetic,small")
    queries = whole.queries.slice(0, 1500)
    kept = pc.is_in(whole.answers["query_id"], pa.array(queries["query_id"].to_pylist()))
    return ExpertTable.from_arrow(whole.info, queries, whole.answers.filter(kept), whole.embeddings[:1500].numpy())


def test_a_new_expert_joins_the_votes(tiny_part: ExpertTable, tmp_path: Path):
    """It is asked where it is good, alone and beside the others, and money is worth more with it."""
    table = tiny_part
    others = table.select(list(table.experts[:-1]))
    trainer = Trainer(TrainConfig(max_calls=2, horizon=16, n_envs=4), others)
    trainer.prepare()
    trainer.save(tmp_path / "before")
    before, after, silent = (Orchestrator.load(tmp_path / "before") for _ in range(3))
    rows = table.rows("train")[:300]
    outcomes = "small", table.embeddings[rows], table.scores[rows, 3], table.costs_usd[rows, 3]
    silent.add_expert(*outcomes, answers=["right" if score else None for score in outcomes[2]])
    assert silent.policy.answer_model.silence[-1] > 0.9 > before.policy.answer_model.silence.max()
    after.add_expert(*outcomes)
    after.save(tmp_path / "after")
    after = Orchestrator.load(tmp_path / "after")
    assert after.experts == list(table.experts) and after.deliver == 4
    old, new = (result_of(one, part) for one, part in ((before, others), (after, table)))
    assert new.mean_score > old.mean_score + 0.02, (new.score, old.score)
    assert new.calls[1:, 3].min() > 0.15
    value, known = (one.policy.network.value for one in (after, before))
    assert (value >= known - 1e-5).all() and float((value - known).max()) > 0.3


def result_of(orchestrator: Orchestrator, table: ExpertTable) -> Result:
    """On test, with votes by its estimates."""
    assert orchestrator.predictor is not None
    reliability = predict_all(orchestrator.predictor, table).reliability()
    rules = dynamics.make_rules(table, "test", 16, max_calls=orchestrator.max_calls, reliability=reliability)
    high = float(table.mean_cost_usd().max())
    return evaluate(orchestrator.router(table), rules, [share * high for share in (0.06, 0.12, 0.25)], 48)


def test_simulated_answers_are_as_the_model_has_them():
    model = AnswerModel(3)
    model.silence.copy_(torch.tensor([0.0, 0.5, 0.1]))
    with torch.no_grad():
        model.log_concentration.fill_(-4.0)  # wrong answers nearly always agree
    chance = torch.tensor([0.2, 0.5, 0.9]).expand(40_000, 3)
    answers = simulate_answers(model, chance, torch.Generator().manual_seed(0))
    assert ((answers == 0).float().mean(dim=0) - chance[0]).abs().max() < 0.01
    wrong = answers != 0
    missing = ((answers < 0) & wrong).sum(dim=0) / wrong.sum(dim=0)
    assert missing.tolist() == pytest.approx([0.0, 0.5, 0.1], abs=0.02)
    both = (answers[:, 0] > 0) & (answers[:, 1] > 0)
    assert (answers[both, 0] == answers[both, 1]).float().mean() > 0.95
    with torch.no_grad():
        model.log_concentration.fill_(6.0)  # they hardly ever do
    answers = simulate_answers(model, chance, torch.Generator().manual_seed(0))
    both = (answers[:, 0] > 0) & (answers[:, 1] > 0)
    assert (answers[both, 0] == answers[both, 1]).float().mean() < 0.05


def test_settings_that_make_no_sense_are_refused(synthetic: Path, capsys: pytest.CaptureFixture):
    assert train.main(["--table", str(synthetic), "--max-calls", "2"]) == 2
    assert "answers.parquet has no column answer" in capsys.readouterr().err
    assert train.main(["--max-calls", "9"]) == 2
    assert "max_calls 9: must be 1 to 5" in capsys.readouterr().err
