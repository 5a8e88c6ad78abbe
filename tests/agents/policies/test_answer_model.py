"""Posteriors and expectations against plain Python that sums over all hypotheses and outcomes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.policies.answer_model import (
    AnswerModel,
    Calls,
    Posterior,
    calls_from_features,
    fit_answer_model,
    group_answers,
)
from leeroo_env import ExpertTable, dynamics
from tests.leeroo_env.dynamics.test_dynamics import keys
from tests.leeroo_env.dynamics.test_voting import answers_table

K = 4


def some_model(seed: int) -> AnswerModel:
    """A model of 4 experts with trust 1, so that chances add up."""
    generator = torch.Generator().manual_seed(seed)
    model = AnswerModel(K).requires_grad_(False)
    model.loading.copy_(2 * torch.rand(K, generator=generator))
    model.silence.copy_(0.05 + 0.3 * torch.rand(K, generator=generator))
    model.log_concentration.fill_(float(torch.rand(1, generator=generator)) * 3)
    return model


def likelihood(model: AnswerModel, log_odds: torch.Tensor, asked: list[int], group: list[int]) -> dict[int, float]:
    """Chance of the calls' outcome together with each hypothesis, -1 that none is right; plain Python."""
    concentration = math.exp(float(model.log_concentration))
    joint = {}
    for right in (-1, *sorted({g for g in group if g >= 0})):
        total = 0.0
        for z, weight in enumerate(model.weight.tolist()):
            chance = weight
            seated: list[int | None] = []
            for expert, answer in zip(asked, group, strict=True):
                p = 1 / (1 + math.exp(-float(log_odds[expert, z])))
                silence = float(model.silence[expert])
                if answer >= 0 and answer == right:
                    chance *= p
                elif answer < 0:
                    chance *= (1 - p) * silence
                else:
                    joined = seated.count(answer) or concentration
                    chance *= (1 - p) * (1 - silence) * joined / (len(seated) + concentration)
                    seated.append(answer)
            total += chance
        joint[right] = total
    return joint


def outcomes_by_ease(model: AnswerModel, posterior: Posterior, expert: int) -> torch.Tensor:
    """[3, H, Z], chances of the outcome of a call to one expert about one query, hypothesis and ease, one by one."""
    (joint,), right, silence = posterior.joint, posterior.right[0, expert], float(model.silence[expert])
    votes, leader = float(posterior.leader[0]), int(posterior.leader[1])
    found = torch.zeros(3, *joint.shape)
    for hypothesis, chances in enumerate(joint):
        wrong = chances * (1 - right)
        joins = float(posterior.count[0, leader] / (posterior.wrong[0, hypothesis] + model.log_concentration.exp()))
        leads = votes > 0 and hypothesis == leader
        found[0, hypothesis] = chances * right if leads else wrong * (1 - silence) * joins
        found[2, hypothesis] = wrong * silence
        found[1, hypothesis] = chances - found[0, hypothesis] - found[2, hypothesis]
    return found


cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1000),
        "asked": st.lists(st.integers(0, K - 1), unique=True, max_size=3),
        "said": st.lists(st.sampled_from([-1, 0, 1, 2]), min_size=3, max_size=3),
        "chance": st.lists(st.floats(0.05, 0.95), min_size=K, max_size=K),
        "next": st.integers(0, K - 1),
    }
)


def calls_from(asked: list[int], said: list[int]) -> tuple[Calls, list[int]]:
    padded = torch.tensor([asked + [-1] * (3 - len(asked))])
    group = group_answers(torch.tensor([said[: len(asked)] + [-1] * (3 - len(asked))]))
    return Calls(padded, group, torch.tensor([len(asked)])), group[0, : len(asked)].tolist()


@settings(max_examples=150, deadline=None)
@given(cases)
def test_posteriors_are_those_of_plain_python(case: dict):
    model, chance = some_model(case["seed"]), torch.tensor([case["chance"]])
    votes = dynamics.vote_weight(chance)
    calls, group = calls_from(case["asked"], case["said"])
    posterior = model.posterior(chance, votes, calls)
    joint = likelihood(model, model.log_odds(chance)[0], case["asked"], group)
    total = sum(joint.values())
    found = posterior.joint.sum(dim=2)[0]
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    for right, value in joint.items():
        assert float(found[right]) == pytest.approx(value / total, abs=1e-4)


@settings(max_examples=150, deadline=None)
@given(cases)
def test_the_expectation_of_a_call_is_the_mean_over_its_outcomes(case: dict):
    """`leader_chance_after` and `outcomes` against the posteriors of all outcomes."""
    asked, nxt = case["asked"][:2], case["next"]
    if nxt in asked:
        return
    model, chance = some_model(case["seed"]), torch.tensor([case["chance"]])
    votes = dynamics.vote_weight(chance)
    calls, group = calls_from(asked, case["said"])
    posterior, log_odds = model.posterior(chance, votes, calls), model.log_odds(chance)[0]
    expert = torch.tensor([[nxt]])
    before = sum(likelihood(model, log_odds, asked, group).values())
    leader = int(posterior.leader[1]) if any(g >= 0 for g in group) else None
    expected, agrees, silent = 0.0, 0.0, 0.0
    for answer in {*(g for g in group if g >= 0), len(asked), -1}:
        joint = likelihood(model, log_odds, [*asked, nxt], [*group, answer])
        p = sum(joint.values()) / before
        then = Calls(torch.tensor([[*asked, nxt]]), torch.tensor([[*group, answer]]), torch.tensor([len(asked) + 1]))
        expected += p * float(model.posterior(chance, votes, then).leader_chance())
        agrees += p * (answer == leader)
        silent += p * (answer == -1)
    assert float(model.leader_chance_after(posterior, expert, votes[:, nxt : nxt + 1])) == pytest.approx(
        expected, abs=2e-4
    )
    everyone = torch.arange(K)[None]
    outcomes, leader_right = model.outcomes(posterior, expert, everyone)
    assert outcomes[0, :, 0, 0].tolist() == pytest.approx([agrees, 1 - agrees - silent, silent], abs=2e-4)
    by_ease = outcomes_by_ease(model, posterior, nxt)
    together = (by_ease.sum(dim=1)[:, None] * posterior.right[0]).sum(dim=2)
    assert torch.allclose(outcomes[0, :, 1:, 0], together, atol=1e-6)
    expected_right = torch.zeros(3) if leader is None else by_ease[:, leader].sum(dim=1)
    assert torch.allclose(leader_right[0, :, 0], expected_right, atol=1e-6)


pairs = st.lists(st.integers(0, 1), min_size=K, max_size=K)


@settings(max_examples=200, deadline=None)
@given(cases, pairs)
def test_variants_that_agree_are_one_witness(case: dict, models: list[int]):
    """The posterior of calls with repetitions is that of the calls without them; without variants it is what it was."""
    model, chance = some_model(case["seed"]), torch.tensor([case["chance"]])
    model.trust.copy_(torch.linspace(0.3, 1.2, K))
    votes = dynamics.vote_weight(chance)
    calls, group = calls_from(case["asked"], case["said"])
    plain = model.posterior(chance, votes, calls)
    model.models = torch.arange(K)
    assert torch.equal(model.posterior(chance, votes, calls).joint, plain.joint), "all differ"
    said: dict[tuple[int, int], int] = {}
    for expert, answer in zip(case["asked"], group, strict=True):
        other = said.setdefault((models[expert], answer), expert)
        if votes[0, expert] > votes[0, other]:
            said[models[expert], answer] = expert
    kept = [expert in said.values() for expert in case["asked"]] + [False] * (3 - len(case["asked"]))
    without = Calls(calls.asked.masked_fill(~torch.tensor([kept]), -1), calls.group, calls.made)
    model.models = None
    expected = model.posterior(chance, votes, without)
    model.models = torch.tensor(models)
    found = model.posterior(chance, votes, calls)
    for name in ("joint", "right", "count", "support", "wrong"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-6), name
    for expert in range(K):
        joined = model.support_after(found, torch.tensor([[expert]]), votes[:, expert : expert + 1])[0, 0]
        for answer in {g for g in group if g >= 0}:
            cast = [
                (models[e], float(votes[0, e])) for e, g in zip(case["asked"], group, strict=True) if g == answer
            ] + [(models[expert], float(votes[0, expert]))]
            most = sum(max(vote for m, vote in cast if m == one) for one in {m for m, _ in cast})
            assert float(joined[answer]) == pytest.approx(most, rel=1e-4)


def test_before_any_call_experts_are_as_good_as_estimated():
    model = some_model(3)
    chance = torch.rand(50, K, generator=torch.Generator().manual_seed(0)) * 0.96 + 0.02
    none = Calls(torch.full((50, 3), -1), torch.full((50, 3), -1), torch.zeros(50, dtype=torch.int64))
    posterior = model.posterior(chance, dynamics.vote_weight(chance), none)
    assert (
        torch.allclose(posterior.expert_chance(), chance, atol=5e-3)
        and posterior.leader_chance().tolist() == [0.0] * 50
    )


@pytest.mark.parametrize("max_calls", [2, 3, 4])
def test_calls_are_read_back_from_the_call_features(max_calls: int):
    rules = dynamics.make_rules(answers_table(), horizon=5, max_calls=max_calls)
    state = dynamics.sample_episodes(rules, keys(40), torch.full((40,), 1.5 * float(rules.cost_scale.mean_usd.min())))
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        state, _ = dynamics.step(rules, state, torch.randint(K + 1, (40,), generator=generator))
        calls = calls_from_features(state.call_features, max_calls)
        answer_ids = rules.table.answer_ids[dynamics.current_rows(state)[:, None], state.asked.clamp(min=0)]
        for i in range(40):
            answered = {
                int(e): int(a)
                for e, a in zip(state.asked[i], answer_ids[i], strict=True)
                if e >= 0 and state.call_features[i, 2 * K + e] != 0
            }
            group = {int(e): int(g) for e, g in zip(calls.asked[i], calls.group[i], strict=True) if e >= 0}
            assert group.keys() == answered.keys() and int(calls.made[i]) == int((state.asked[i] >= 0).sum())
            for one in answered:
                assert (group[one] < 0) == (answered[one] < 0)
                for other in answered:
                    alike = answered[one] == answered[other] >= 0
                    assert (group[one] == group[other] >= 0) == alike


def test_a_sibling_that_always_agrees_makes_nothing_more_likely():
    """a@again repeats a: after both the chance is that after a alone, and what is expected of b as well; where names do
    not tell, it would rise. A call to b still counts."""
    n, rng = 3000, np.random.default_rng(0)
    right = rng.random((n, 2)) < 0.6
    wrong = rng.choice(np.array(["w", "x", "y", "z", None], dtype=object), size=(n, 2))
    answers = np.where(right, "right", wrong)
    found = {}
    for names in (["a", "a@again", "b"], ["a", "c", "b"]):
        table = ExpertTable.from_arrays(
            "copies",
            names,
            np.ones((n, 2)),
            right[:, [0, 0, 1]],
            np.full((n, 3), 1e-4),
            answers=answers[:, [0, 0, 1]],
            split=["train"] * n,
        )
        model = fit_answer_model(table, table.rows("train"), torch.full((n, 3), 0.6))
        chance = torch.full((3, 3), 0.6)
        asked = torch.tensor([[0, -1, -1], [0, 1, -1], [0, 1, 2]])
        calls = Calls(asked, asked.clamp(max=0), torch.tensor([1, 2, 3]))
        after = model.posterior(chance, dynamics.vote_weight(chance), calls)
        found[names[1]] = after.leader_chance().tolist(), after.expert_chance()[:, 2].tolist()
    (one, both, other), expected = found["a@again"]
    assert both == pytest.approx(one, abs=1e-6) and expected[1] == pytest.approx(expected[0], abs=1e-6)
    assert other > both + 0.1
    assert found["c"][0][1] > found["c"][0][0] + 0.02


def test_fitting_finds_that_experts_fail_together():
    """The failure of one expert lowers the chance of another that is right with it, not of one that is independent."""
    n, rng = 2000, np.random.default_rng(0)
    ease = rng.normal(size=n) > 0
    right = np.stack([ease, ease, rng.random(n) < 0.5, rng.random(n) < 0.5], axis=1)
    wrong = np.where(rng.random((n, 4)) < 0.5, None, np.array(["w", "x", "y", "z"], dtype=object))
    table = ExpertTable.from_arrays(
        "twins",
        list("abcd"),
        np.ones((n, 2)),
        right,
        np.full((n, 4), 1e-4),
        answers=np.where(right, "right", wrong),
        split=["train"] * n,
    )
    model = fit_answer_model(table, table.rows("train"), torch.full((n, 4), 0.5))
    chance, silent = torch.full((2, 4), 0.5), torch.full((2, 3), -1)
    failed = Calls(torch.tensor([[0, -1, -1], [2, -1, -1]]), silent, torch.ones(2, dtype=torch.int64))
    after = model.posterior(chance, dynamics.vote_weight(chance), failed).expert_chance()
    assert float(after[0, 1]) < 0.3 and float(after[1, 3]) > 0.4, "0 and 0.5 are true"
