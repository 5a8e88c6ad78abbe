"""The rules of an episode, whatever the table and whatever is played."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leeroo_env import ExpertTable, InputError, dynamics
from leeroo_env.cost_scale import CostScale
from leeroo_env.dynamics.rng import sample_without_replacement
from tests.conftest import random_table


def keys(n: int, seed: int = 0) -> torch.Tensor:
    number = torch.arange(n)
    return dynamics.episode_keys(torch.full_like(number, seed), number)


def play(rules: dynamics.Rules, state: dynamics.State, seed: int):
    """Random actions to the end; yields state before, actions, state after and outcome of every step."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(rules.horizon):
        actions = torch.randint(len(rules.table.experts), (len(state.t),), generator=generator)
        after, outcome = dynamics.step(rules, state, actions)
        yield state, actions, after, outcome
        state = after


episodes = st.fixed_dictionaries(
    {"seed": st.integers(0, 10_000), "horizon": st.integers(1, 20), "k": st.integers(1, 6), "weight": st.floats(0, 2)}
)


@settings(max_examples=40, deadline=None)
@given(episodes)
def test_money_and_time_obey_the_rules(case: dict):
    table = random_table(k=case["k"], seed=case["seed"])
    rules = dynamics.make_rules(table, horizon=case["horizon"], cost_weight=case["weight"])
    state = dynamics.sample_episodes(rules, keys(16, case["seed"]))
    low, high = rules.budget_usd_per_query
    assert (
        (state.budget_usd >= low * rules.horizon * 0.9999) & (state.budget_usd <= high * rules.horizon * 1.0001)
    ).all()
    returns = torch.zeros(16)
    for before, actions, after, outcome in play(rules, state, case["seed"]):
        price = table.costs_usd[dynamics.current_rows(before), actions].double()
        answer = table.scores[dynamics.current_rows(before), actions]
        assert torch.equal(outcome.cut_off, price > before.left_usd), "cut off if and only if it cannot be paid"
        assert (after.left_usd >= 0).all() and (after.left_usd <= before.left_usd).all()
        assert torch.equal(outcome.cost_usd, price.minimum(before.left_usd)), "the money is spent all the same"
        assert (outcome.score[outcome.cut_off] == 0).all() and (after.left_usd[outcome.cut_off] == 0).all()
        assert torch.equal(outcome.score[~outcome.cut_off], answer[~outcome.cut_off])
        assert outcome.terminated.all() == (int(after.t[0]) == rules.horizon)
        observation = dynamics.observe(rules, after)
        assert observation.isfinite().all() and observation.shape == (16, 5 + 2)
        mask = dynamics.action_mask(rules.cost_scale.mean_usd, after.left_usd)
        fits = rules.cost_scale.mean_usd <= after.left_usd[:, None]
        assert mask.any(dim=1).all() and torch.equal(mask | fits, mask) and int((mask & ~fits).sum(dim=1).max()) <= 1
        returns += outcome.reward
    spent = after.budget_usd - after.left_usd
    delivered = after.score - case["weight"] * spent / float(rules.cost_scale.mean_usd.max())
    assert torch.allclose(returns.double(), delivered, atol=1e-3), "the return is what was delivered minus what it cost"
    assert torch.equal(after.calls.sum(dim=1), after.t)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)))
def test_permuting_experts_permutes_rewards(seed: int, order: list[int]):
    table = random_table(seed=seed)
    permuted = table.select([table.experts[i] for i in order])
    one, other = (dynamics.make_rules(t, horizon=10) for t in (table, permuted))
    position = torch.tensor(order).argsort()
    a, b = dynamics.sample_episodes(one, keys(8)), dynamics.sample_episodes(other, keys(8))
    for _, actions, _, _ in play(one, a, seed):
        a, first = dynamics.step(one, a, actions)
        b, second = dynamics.step(other, b, position[actions])
        assert torch.equal(first.reward, second.reward) and torch.equal(first.cut_off, second.cut_off)
        assert torch.equal(dynamics.observe(one, a), dynamics.observe(other, b))


def test_an_episode_depends_on_its_key_alone(table: ExpertTable):
    rules = dynamics.make_rules(table, horizon=12)
    many, one = dynamics.sample_episodes(rules, keys(50)), dynamics.sample_episodes(rules, keys(50)[17:18])
    assert torch.equal(many.rows[17:18], one.rows) and torch.equal(many.budget_usd[17:18], one.budget_usd)
    assert len({tuple(r) for r in many.rows.tolist()}) == 50 and len(set(many.budget_usd.tolist())) == 50


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**62), st.data())
def test_queries_are_drawn_without_replacement(n: int, seed: int, data: st.DataObject):
    horizon = data.draw(st.integers(1, n))
    drawn = sample_without_replacement(keys(5, seed), n, horizon)
    for row in drawn.tolist():
        assert len(set(row)) == horizon and min(row) >= 0 and max(row) < n


@pytest.mark.parametrize(("n", "together"), [(5, 3), (12, 2), (60, 2), (1000, 1)])
def test_all_draws_are_equally_likely(n: int, together: int):
    """Chi-squared over all ordered tuples of the first queries, within 5 standard deviations of its mean."""
    count = 200_000
    drawn = sample_without_replacement(keys(count, 7), n, together)
    code = (drawn * n ** torch.arange(together)).sum(dim=1)
    counts = torch.bincount(code, minlength=n**together).double()
    cells = math.perm(n, together)
    expected = count / cells
    chi = float(((counts[counts > 0] - expected) ** 2).sum() / expected) + (cells - int((counts > 0).sum())) * expected
    assert abs(chi - (cells - 1)) < 5 * math.sqrt(2 * (cells - 1))


def test_budgets_are_log_uniform(table: ExpertTable):
    rules = dynamics.make_rules(table, horizon=4)
    low, high = rules.budget_usd_per_query
    place = torch.log(dynamics.sample_episodes(rules, keys(20_000)).budget_usd / 4 / low) / math.log(high / low)
    for quantile in (0.1, 0.5, 0.9):
        assert float(place.quantile(quantile)) == pytest.approx(quantile, abs=0.015)


def test_budget_features_need_only_dollars_and_queries_left():
    scale = CostScale(torch.tensor([0.001, 0.1]), 0.001, 0.1)
    features = dynamics.budget_features(
        scale, torch.tensor([0.064, 6.4, 0.0, 1e9, 0.01]), torch.tensor([64, 64, 3, 1, 1024])
    )
    expected = [[0, 0.6], [1, 0.6], [-1, math.log2(3) / 10], [2, 0], [-1, 1]]
    assert torch.allclose(features, torch.tensor(expected), atol=1e-5)


def test_free_experts_do_not_break_the_scale():
    n = 40
    for cost in (np.zeros((n, 2)), np.tile([0.0, 0.01], (n, 1)), np.full((n, 2), 0.01)):
        table = ExpertTable.from_arrays("free", ["a", "b"], np.ones((n, 2), np.float32), np.ones((n, 2)), cost)
        rules = dynamics.make_rules(table, horizon=5)
        state = dynamics.sample_episodes(rules, keys(10))
        grid = dynamics.budget_grid(rules)
        assert dynamics.observe(rules, state).isfinite().all() and (state.budget_usd > 0).all()
        assert sorted(grid) == grid and grid[0] > 0 and len(set(grid)) == 6


def test_the_grid_of_a_report(table: ExpertTable):
    rules = dynamics.make_rules(table) if len(table.rows("train")) >= 64 else dynamics.make_rules(table, horizon=4)
    grid, cost = dynamics.budget_grid(rules), rules.cost_scale.mean_usd
    assert grid[0] == pytest.approx(1.2 * float(cost.min())) and grid[-1] < float(cost.max())
    ratios = [b / a for a, b in zip(grid, [*grid[1:], float(cost.max())], strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 6)


def test_prices_are_known_from_the_training_split_only(table: ExpertTable):
    rules = dynamics.make_rules(table, "test", horizon=4)
    assert torch.equal(rules.cost_scale.mean_usd, table.mean_cost_usd("train"))
    assert not torch.equal(rules.cost_scale.mean_usd, table.mean_cost_usd("test"))


def test_senseless_settings_are_refused(table: ExpertTable):
    for kwargs, message in (
        ({"horizon": 21}, "horizon 21: must be 1 to 20"),
        ({"horizon": 0}, "horizon 0"),
        ({"horizon": 4, "budget_usd_per_query": 1e-9}, "below every expert's mean cost; expert-0 is cheapest"),
        ({"horizon": 4, "budget_usd_per_query": (1e-9, 1)}, "below every expert's mean cost"),
        ({"horizon": 4, "budget_usd_per_query": float("nan")}, "budget nan: must be finite and above 0"),
        ({"horizon": 4, "budget_usd_per_query": (1e-3, math.inf)}, "budget 0.001, inf: must be finite"),
        ({"horizon": 4, "budget_usd_per_query": (1, 2, 3)}, "give one number or two"),
        ({"horizon": 4, "cost_weight": -1.0}, "cost weight -1.0"),
    ):
        with pytest.raises(InputError, match=message):
            dynamics.make_rules(table, **kwargs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: compares CPU and CUDA step by step")
def test_devices_agree(table: ExpertTable):
    states: dict[str, dynamics.State] = {}
    outcomes: dict[int, list[dynamics.Outcome]] = {}
    for device in ("cpu", "cuda"):
        rules = dynamics.make_rules(table.to(device), horizon=12)
        state = dynamics.sample_episodes(rules, keys(64).to(device))
        for t in range(12):
            state, outcome = dynamics.step(rules, state, (torch.arange(64, device=device) + t) % 4)
            outcomes.setdefault(t, []).append(outcome)
        states[device] = state
    assert torch.equal(states["cpu"].rows, states["cuda"].rows.cpu())
    for first, second in outcomes.values():
        assert torch.equal(first.cut_off, second.cut_off.cpu())
        assert torch.allclose(first.reward, second.reward.cpu(), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1000), st.integers(1, 7), st.sampled_from([1, 3]), st.sampled_from([torch.float16, torch.float32])
)
def test_features_are_observed_as_embeddings_would_be(seed: int, width: int, max_calls: int, dtype: torch.dtype):
    """Rules with features play and observe as those of a table that holds the features as its embeddings."""
    answers = np.random.default_rng(seed).choice(np.array(["A", "B", None], dtype=object), size=(60, 4))
    table = random_table(seed=seed, answers=answers)
    features = torch.randn(60, width, generator=torch.Generator().manual_seed(seed)).to(dtype)
    given_features = dynamics.make_rules(table, horizon=6, max_calls=max_calls, features=features)
    replaced = dynamics.make_rules(replace(table, embeddings=features), horizon=6, max_calls=max_calls)
    assert given_features.table is table and given_features.features.data_ptr() == features.data_ptr()
    one, other = (dynamics.sample_episodes(rules, keys(8, seed)) for rules in (given_features, replaced))
    for actions in torch.randint(replaced.n_actions, (6 * max_calls, 8), generator=torch.Generator().manual_seed(seed)):
        observed = dynamics.observe(given_features, one)
        assert observed.shape[1] == width + one.call_features.shape[1] + 2 and observed.dtype == torch.float32
        assert torch.equal(observed, dynamics.observe(replaced, other))
        (one, first), (other, second) = (
            dynamics.step(given_features, one, actions),
            dynamics.step(replaced, other, actions),
        )
        for a, b in ((one, other), (first, second)):
            assert all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


@pytest.mark.parametrize(
    "features",
    [torch.zeros(60), torch.zeros(59, 3), torch.zeros(60, 0), torch.zeros(60, 3, dtype=torch.int64)],
    ids=["vector", "too few", "empty", "integers"],
)
def test_senseless_features_are_refused(table: ExpertTable, features: torch.Tensor):
    with pytest.raises(InputError, match=r"features torch\.\w+ \[.*\]: must be floating point, \[60, F\], for random"):
        dynamics.make_rules(table, horizon=4, features=features)
