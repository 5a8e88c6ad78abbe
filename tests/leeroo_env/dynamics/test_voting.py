"""The rules of an episode in which several experts can be asked about a query."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leeroo_env import ExpertTable, InputError, dynamics
from leeroo_env.variants import shared_models
from tests.conftest import random_table
from tests.leeroo_env.dynamics.test_dynamics import keys


def answers_table(n: int = 60, k: int = 4, seed: int = 0, names: Sequence[str] | None = None) -> ExpertTable:
    """Made-up scores, costs and answers; some experts give none."""
    answers = np.random.default_rng(seed).choice(np.array(["A", "B", "C", None], dtype=object), size=(n, k))
    return random_table(n, k, seed=seed, names=names, answers=answers)


def named_variants(entries: list[int]) -> list[str]:
    """Names of experts whose models are these: the first of a model is its entry, later ones are its variants."""
    return [f"m{entry}" + (f"@{i}" if entry in entries[:i] else "") for i, entry in enumerate(entries)]


class PlainEpisode:
    """One episode in plain Python, by the letter of the rules."""

    def __init__(self, rules: dynamics.Rules, state: dynamics.State, i: int):
        self.rules, self.table, self.max_calls = rules, rules.table, rules.max_calls
        self.models = [name.split("@")[0] for name in rules.table.experts]
        self.rows, self.left_usd = state.rows[i].tolist(), float(state.left_usd[i])
        self.asked: list[int] = []
        self.answered: list[bool] = []

    def step(self, action: int) -> tuple[float, float, bool, bool]:
        """Score, cost, cut off, delivered."""
        row, deliver, cost_usd, cut_off = self.rows[0], action == len(self.table.experts), 0.0, False
        if not deliver:
            again = action in self.asked
            price = 0.0 if again else float(self.table.costs_usd[row, action])
            cut_off = price > self.left_usd
            self.asked.append(action)
            self.answered.append(not again and not cut_off)
            cost_usd = min(price, self.left_usd)
        self.left_usd -= cost_usd
        if not deliver and len(self.asked) < self.max_calls:
            return 0.0, cost_usd, cut_off, False
        ids = [int(self.table.answer_ids[row, e]) for e in self.asked]
        weights = [float(dynamics.vote_weight(self.rules.reliability[row, e])) for e in self.asked]
        leader, *_ = plain_count(self.asked, self.answered, ids, weights, self.models)
        self.rows, self.asked, self.answered = self.rows[1:], [], []
        return float(self.table.scores[row, leader]) if leader >= 0 else 0.0, cost_usd, cut_off, True

    def call_features(self) -> list[float]:
        """What the agent observes of the calls for the current query."""
        row, k, m = self.rows[0] if self.rows else 0, len(self.table.experts), self.max_calls
        calls = [i for i, yes in enumerate(self.answered) if yes]
        ids = [int(self.table.answer_ids[row, e]) for e in self.asked]
        votes = [float(dynamics.vote_weight(self.rules.reliability[row, e])) for e in self.asked]
        count = plain_count(self.asked, self.answered, ids, votes, self.models)
        _, support, different, agrees, group = count
        features = np.zeros(4 * k + 3, dtype=np.float32)
        for i, expert in enumerate(self.asked):
            features[expert] = 1
            features[k + expert] = max(features[k + expert], agrees[i])
            if i in calls:
                features[2 * k + expert] = np.float32(group[i] + 1 if group[i] >= 0 else -1) / np.float32(m)
                features[3 * k + expert] = self.rules.evidence[row, expert]
        cast = {(ids[i], self.models[self.asked[i]]): 0.0 for i in calls if ids[i] >= 0}
        for i in calls:
            vote = ids[i], self.models[self.asked[i]]
            cast[vote] = max(votes[i], cast.get(vote, 0.0)) if ids[i] >= 0 else 0.0
        total = sum(cast.values())
        totals = [support / total * m if total else 0.0, different, len(self.asked)]
        features[4 * k :] = np.array(totals, dtype=np.float32) / np.float32(m)
        return features.tolist()

    def mask(self) -> list[bool]:
        """The mask."""
        prices = self.rules.cost_scale.mean_usd.tolist()
        allowed = [e not in self.asked and price <= self.left_usd for e, price in enumerate(prices)]
        if not self.asked:
            allowed[int(np.argmin(prices))] = True
        return [*allowed, bool(self.asked)]


def plain_count(
    asked: list[int], answered: list[bool], ids: list[int], weights: list[float], models: Sequence[object]
) -> tuple[int, float, int, list[bool], list[int]]:
    """Leader, support, different, agrees, group for one query."""
    calls = [i for i, yes in enumerate(answered) if yes and asked[i] >= 0]
    given = [i for i in calls if ids[i] >= 0]
    if not given:
        best = max(calls, key=lambda i: (weights[i], -i), default=None)
        return -1 if best is None else asked[best], 0.0, 0, [False] * len(asked), [-1] * len(asked)
    supporters = {a: [i for i in given if ids[i] == a] for a in {ids[i] for i in given}}

    def rank(answer: int) -> tuple[float, float, int]:
        votes: dict[object, float] = {}
        for i in supporters[answer]:
            votes[models[asked[i]]] = max(weights[i], votes.get(models[asked[i]], 0.0))
        return sum(votes.values()), max(votes.values()), -supporters[answer][0]

    leading = max(supporters, key=rank)
    agrees = [i in supporters[leading] for i in range(len(asked))]
    group = [supporters[ids[i]][0] if i in given else -1 for i in range(len(asked))]
    return asked[supporters[leading][0]], rank(leading)[0], len(supporters), agrees, group


def counted(
    asked: list[int], answered: list[bool], ids: list[int], weights: list[float], models: list[int] | None = None
) -> dynamics.VoteCount:
    ballot = torch.tensor([asked]), torch.tensor([answered]), torch.tensor([ids]), torch.tensor([weights])
    return dynamics.count_votes(*ballot, None if models is None else torch.tensor(models))


@st.composite
def ballots(draw: st.DrawFn) -> tuple[list[int], list[bool], list[int], list[float]]:
    m = draw(st.integers(1, 6))
    made = draw(st.integers(0, m))
    asked = draw(st.lists(st.integers(0, 8), min_size=made, max_size=made, unique=True)) + [-1] * (m - made)
    answered = [draw(st.booleans()) and e >= 0 for e in asked]
    ids = draw(st.lists(st.integers(-1, 2), min_size=m, max_size=m))
    few = [float(np.float32(w)) for w in (0.1, 0.2, 0.3, 0.4, 0.7)]  # few, so that sums are often equal
    return asked, answered, ids, draw(st.lists(st.sampled_from(few), min_size=m, max_size=m))


@settings(max_examples=500, deadline=None)
@given(ballots(), st.none() | st.lists(st.integers(0, 3), min_size=9, max_size=9))
def test_the_leading_answer_is_what_plain_python_says(
    case: tuple[list[int], list[bool], list[int], list[float]], models: list[int] | None
):
    found = counted(*case, models)
    leader, support, different, agrees, group = plain_count(*case, models or range(9))
    assert (int(found.leader), float(found.support), int(found.different)) == (leader, support, different)
    assert found.agrees.tolist() == [agrees] and found.group.tolist() == [group]


@settings(max_examples=200, deadline=None)
@given(ballots(), st.lists(st.integers(0, 3), min_size=9, max_size=9), st.randoms())
def test_votes_of_variants(case: tuple[list[int], list[bool], list[int], list[float]], models: list[int], rng: Random):
    """Their order does not matter to the support, one that agrees with less weight changes nothing, and without
    variants the count is what it was."""
    asked, answered, ids, weights = case

    def count(order: Sequence[int], models: list[int] | None) -> dynamics.VoteCount:
        asked, answered, ids, weights = case
        some = [asked[i] for i in order], [answered[i] for i in order], [ids[i] for i in order]
        return counted(*some, [weights[i] for i in order], models)

    order = list(range(len(asked)))
    found, alone = count(order, models), count(order, None)
    for name, value in vars(count(order, list(range(9)))).items():
        assert torch.equal(value, getattr(alone, name)), name
    shuffled = rng.sample(order, len(order))
    assert float(count(shuffled, models).support) == float(found.support) <= float(alone.support)
    for i in order:
        if answered[i] and ids[i] >= 0:
            parts = [*asked, asked[i]], [*answered, True], [*ids, ids[i]], [*weights, weights[i] / 2]
            more = counted(*parts, models)
            assert (more.leader, more.support, more.share) == (found.leader, found.support, found.share)


def test_two_answers_of_one_model_each_keep_their_weight():
    """a@short and a say 7, a@again says 3 as does b; votes 2, 5, 4 and 3: 7 has 5, 3 has 7."""
    models = shared_models(["a@short", "a", "a@again", "b"])
    asked, yes, ids = torch.tensor([[0, 1, 2, 3]]), torch.ones(1, 4, dtype=torch.bool), torch.tensor([[7, 7, 3, 3]])
    found = dynamics.count_votes(asked, yes, ids, torch.tensor([[2.0, 5.0, 4.0, 3.0]]), models)
    assert (int(found.leader), float(found.support), float(found.share)) == (2, 7.0, 7 / 12)
    assert found.agrees.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    ("ids", "weights", "leader", "agrees"),
    [
        ([7, 3, 3], [0.5, 0.3, 0.3], 11, [0, 1, 1]),
        ([7, 3, 3], [0.7, 0.3, 0.3], 10, [1, 0, 0]),
        ([3, 3, 7], [0.25, 0.25, 0.5], 12, [0, 0, 1]),
        ([3, 7, -1], [0.5, 0.5, 0.9], 10, [1, 0, 0]),
        ([-1, -1, 7], [0.9, 0.9, 0.1], 12, [0, 0, 1]),
        ([-1, -1, -1], [0.5, 0.9, 0.9], 11, [0, 0, 0]),
    ],
    ids=["majority", "weight", "strongest", "first", "missing", "all missing"],
)
def test_which_answer_leads(ids: list[int], weights: list[float], leader: int, agrees: list[int]):
    yes = torch.ones(1, 3, dtype=torch.bool)
    found = dynamics.count_votes(torch.tensor([[10, 11, 12]]), yes, torch.tensor([ids]), torch.tensor([weights]))
    assert int(found.leader) == leader and found.agrees.int().tolist() == [agrees]


episodes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "horizon": st.integers(1, 12),
        "k": st.integers(2, 6),
        "m": st.integers(2, 6),
        "weight": st.floats(0, 2),
        "pace": st.sampled_from([1.0, 1.5, 4.0]),
        "delivers": st.sampled_from([0.0, 0.2, 0.6]),
        "masked": st.booleans(),
        "models": st.none() | st.lists(st.integers(0, 2), min_size=6, max_size=6),
    }
)


@settings(max_examples=60, deadline=None)
@given(episodes)
def test_episodes_obey_the_rules(case: dict):
    """Every step of 8 episodes against plain Python, whatever is played, until all have ended."""
    names = case["models"] and named_variants(case["models"][: case["k"]])
    table, rng = answers_table(k=case["k"], seed=case["seed"], names=names), np.random.default_rng(case["seed"])
    k, m, horizon, b = case["k"], min(case["m"], case["k"]), case["horizon"], 8
    reliability = torch.from_numpy(rng.integers(0, 5, size=(len(table), k)) / 4)
    evidence = torch.from_numpy(rng.uniform(-6, 6, size=(len(table), k))).float()
    rules = dynamics.make_rules(table, "train", horizon, None, case["weight"], m, reliability, evidence=evidence)
    budget = torch.full((b,), case["pace"] * float(rules.cost_scale.mean_usd.min()))
    state = dynamics.sample_episodes(rules, keys(b, case["seed"]), budget)
    plain = [PlainEpisode(rules, state, i) for i in range(b)]
    returns = torch.zeros(b, dtype=torch.float64)
    for _ in range(m * horizon):
        mask = dynamics.state_mask(rules, state)
        likely = rng.random((b, k + 1)) * (mask.numpy() if case["masked"] else 1)
        deliver = (rng.random(b) < case["delivers"]) & (mask[:, k].numpy() | (not case["masked"]))
        actions = np.where(deliver, k, likely.argmax(axis=1))
        after, outcome = dynamics.step(rules, state, torch.from_numpy(actions))
        for i, episode in enumerate(plain):
            if not episode.rows:
                assert not outcome.delivered[i] and not outcome.cut_off[i] and outcome.terminated[i]
                assert outcome.score[i] == outcome.cost_usd[i] == outcome.reward[i] == 0
                continue
            assert mask[i].tolist() == episode.mask()
            score, cost_usd, cut_off, delivered = episode.step(int(actions[i]))
            assert (float(outcome.score[i]), float(outcome.cost_usd[i])) == (score, cost_usd)
            assert (bool(outcome.cut_off[i]), bool(outcome.delivered[i])) == (cut_off, delivered)
            assert after.asked[i].tolist() == episode.asked + [-1] * (m - len(episode.asked))
            assert after.call_features[i].tolist() == episode.call_features()
            assert bool(outcome.terminated[i]) == (not episode.rows)
            assert int(after.steps[i]) == int(state.steps[i]) + 1
        assert after.left_usd.tolist() == [episode.left_usd for episode in plain]
        assert (after.left_usd >= 0).all() and (after.left_usd <= state.left_usd).all()
        observation = dynamics.observe(rules, after)
        assert observation.isfinite().all() and observation.shape == (b, 5 + 4 * k + 5)
        returns += outcome.reward
        state = after
    assert outcome.terminated.all(), "a query takes at most M steps"
    spent = state.budget_usd - state.left_usd
    delivered_less_cost = state.score - case["weight"] * spent / float(rules.cost_scale.mean_usd.max())
    assert torch.allclose(returns, delivered_less_cost, atol=1e-3)
    assert (state.calls.sum(dim=1) <= state.steps).all() and (state.cut_off <= state.calls.sum(dim=1)).all()


def test_an_expert_asked_again_does_not_answer_and_is_not_charged():
    rules = dynamics.make_rules(answers_table(), horizon=4, max_calls=3)
    state = dynamics.sample_episodes(rules, keys(5), torch.full((5,), 1.0))
    once, _ = dynamics.step(rules, state, torch.full((5,), 2))
    assert not dynamics.state_mask(rules, once)[:, 2].any() and dynamics.state_mask(rules, once)[:, [0, 1, 3, 4]].all()
    twice, outcome = dynamics.step(rules, once, torch.full((5,), 2))
    assert not outcome.cut_off.any() and torch.equal(twice.left_usd, once.left_usd)
    assert twice.asked.tolist() == [[2, 2, -1]] * 5 and torch.equal(
        twice.call_features[:, :-1], once.call_features[:, :-1]
    )
    _, outcome = dynamics.step(rules, twice, torch.full((5,), 2))
    assert outcome.delivered.all(), "the third call delivers, though without an answer"
    assert torch.equal(outcome.score, rules.table.scores[state.rows[:, 0], 2])


def test_delivering_unasked_scores_nothing():
    rules = dynamics.make_rules(answers_table(), horizon=4, max_calls=2)
    state = dynamics.sample_episodes(rules, keys(5))
    assert not dynamics.state_mask(rules, state)[:, -1].any()
    after, outcome = dynamics.step(rules, state, torch.full((5,), 4))
    assert outcome.delivered.all() and after.t.tolist() == [1] * 5 and outcome.reward.tolist() == [0.0] * 5


def test_what_the_agent_observes_of_calls():
    """Experts 0, 2 and 3 say x, z and x; 1 says nothing; their votes weigh 1, 2.25, 49/9 and 9/49."""
    n = 30
    table = ExpertTable.from_arrays(
        "said", list("abcd"), np.ones((n, 2)), np.ones((n, 4)), np.ones((n, 4)), answers=[["x", None, "z", "x"]] * n
    )
    rules = dynamics.make_rules(
        table,
        horizon=2,
        max_calls=4,
        reliability=torch.tensor([[0.5, 0.6, 0.7, 0.3]]),
        evidence=torch.tensor([[-1.0, 2.0, 0.5, 0.0]]),
    )
    state = dynamics.sample_episodes(rules, keys(1), torch.tensor([9.0]))
    share = (49 / 9) / (49 / 9 + 9 / 49)
    expected = [
        [0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1 / 4, 0, 0, 0, 0.5, 0, 1, 1 / 4, 1 / 4],
        [0, 1, 1, 0, 0, 0, 1, 0, 0, -1 / 4, 1 / 4, 0, 0, 2, 0.5, 0, 1, 1 / 4, 2 / 4],
        [0, 1, 1, 1, 0, 0, 1, 0, 0, -1 / 4, 1 / 4, 3 / 4, 0, 2, 0.5, 0, share, 2 / 4, 3 / 4],
        [0] * 19,
    ]
    for expert, features in zip([2, 1, 3, 0], expected, strict=True):
        state, outcome = dynamics.step(rules, state, torch.tensor([expert]))
        observed = dynamics.observe(rules, state)[0]
        assert observed[2:-2].tolist() == pytest.approx(features) and observed[:2].tolist() == [1, 1]
        assert bool(outcome.delivered) == (expert == 0)


@pytest.mark.parametrize("names", [None, ["a", "b", "c", "b@short"]])
def test_a_live_query_is_seen_as_one_of_the_table(names: list[str] | None):
    """`count_votes` and `call_features` over plain tensors that hold only the calls made so far."""
    evidence = torch.linspace(-6, 6, 240).view(60, 4)
    rules = dynamics.make_rules(answers_table(names=names), horizon=3, max_calls=4, evidence=evidence)
    state = dynamics.sample_episodes(rules, keys(6), torch.full((6,), 1.0))
    asked = torch.tensor([[3, 1]] * 6)
    for call in range(2):
        state, _ = dynamics.step(rules, state, asked[:, call])
    row = dynamics.current_rows(state)[:, None]
    weights = dynamics.vote_weight(rules.reliability[row, asked])
    yes, ids = torch.ones(6, 2, dtype=torch.bool), rules.table.answer_ids[row, asked]
    votes = dynamics.count_votes(asked, yes, ids, weights, rules.models)
    seen = dynamics.call_features(4, asked, asked >= 0, votes, 4, evidence[row, asked])
    assert torch.equal(seen, dynamics.observe(rules, state)[:, 5:-2])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)))
def test_permuting_experts_permutes_outcomes(seed: int, order: list[int]):
    table = answers_table(seed=seed)
    permuted = table.select([table.experts[i] for i in order])
    one, other = (dynamics.make_rules(t, horizon=5, max_calls=3) for t in (table, permuted))
    position = torch.tensor([*torch.tensor(order).argsort().tolist(), 4])
    a, b = dynamics.sample_episodes(one, keys(8)), dynamics.sample_episodes(other, keys(8))
    columns = [*range(5), *(block + i for block in (5, 9, 13, 17) for i in order), *range(21, 26)]
    for actions in torch.randint(5, (15, 8), generator=torch.Generator().manual_seed(seed)):
        a, first = dynamics.step(one, a, actions)
        b, second = dynamics.step(other, b, position[actions])
        for name in ("reward", "cut_off", "delivered", "score"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name
        assert torch.equal(dynamics.observe(one, a)[:, columns], dynamics.observe(other, b))
        assert torch.equal(dynamics.state_mask(one, a)[:, [*order, 4]], dynamics.state_mask(other, b))


@pytest.mark.parametrize("max_calls", [2, 4])
def test_asking_once_and_delivering_is_the_one_call_episode(max_calls: int):
    table = answers_table(k=5, seed=3)
    one, many = (dynamics.make_rules(table, horizon=20, max_calls=m) for m in (1, max_calls))
    a, b = dynamics.sample_episodes(one, keys(32)), dynamics.sample_episodes(many, keys(32))
    for actions in torch.randint(5, (20, 32), generator=torch.Generator().manual_seed(0)):
        a, first = dynamics.step(one, a, actions)
        b, asked = dynamics.step(many, b, actions)
        b, delivered = dynamics.step(many, b, torch.full((32,), 5))
        assert torch.equal(delivered.score, first.score) and torch.equal(asked.cost_usd, first.cost_usd)
        assert torch.equal(asked.cut_off, first.cut_off) and torch.equal(delivered.terminated, first.terminated)
    assert first.terminated.all() and a.cut_off.any()
    for name in ("left_usd", "score", "cut_off", "calls", "t"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert torch.equal(b.steps, 2 * a.steps)


def test_reliability_is_the_mean_score_on_the_training_split():
    table = answers_table()
    rules = dynamics.make_rules(table, "test", horizon=4, max_calls=2)
    assert torch.equal(rules.reliability, table.mean_score("train").expand(60, 4))
    assert rules.reliability.stride(0) == 0, "one row, not N"
    one_row = torch.full((1, 4), 0.5)
    assert dynamics.make_rules(table, horizon=4, max_calls=2, reliability=one_row).reliability.shape == (60, 4)


def test_senseless_calls_are_refused(table: ExpertTable):
    nan, high = torch.full((1, 4), torch.nan), torch.full((60, 4), 1.01)
    for kwargs, message in (
        ({"max_calls": 0}, "max_calls 0: must be 1 to 4"),
        ({"max_calls": 5}, "max_calls 5: must be 1 to 4"),
        ({"reliability": torch.ones(4)}, r"reliability \[4\]: must be \[60, 4\] or \[1, 4\]"),
        ({"reliability": torch.ones(59, 4)}, r"reliability \[59, 4\]"),
        ({"reliability": nan}, r"reliability: must be numbers in \[0, 1\]"),
        ({"reliability": high}, r"reliability: must be numbers in \[0, 1\]"),
        ({"reliability": -high}, r"reliability: must be numbers in \[0, 1\]"),
        ({"evidence": torch.ones(4)}, r"evidence \[4\]: must be \[60, 4\] or \[1, 4\]"),
        ({"evidence": nan}, "evidence: must be numbers from -6 to 6, in log-odds"),
        ({"evidence": 7 * torch.ones(1, 4)}, "evidence: must be numbers from -6 to 6"),
    ):
        with pytest.raises(InputError, match=message):
            dynamics.make_rules(answers_table(), horizon=4, **kwargs)
    with pytest.raises(InputError, match=r"answers\.parquet has no column answer"):
        dynamics.make_rules(table, horizon=4, max_calls=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: compares CPU and CUDA step by step")
def test_devices_agree():
    results: dict[str, list[torch.Tensor]] = {}
    for device in ("cpu", "cuda"):
        rules = dynamics.make_rules(answers_table().to(device), horizon=6, max_calls=3)
        state = dynamics.sample_episodes(rules, keys(64).to(device))
        for t in range(18):
            state, outcome = dynamics.step(rules, state, (torch.arange(64, device=device) * (t + 1)) % 5)
            results.setdefault(device, []).extend([outcome.score, outcome.cut_off, outcome.delivered, state.asked])
            results[device].append(dynamics.state_mask(rules, state))
    for one, other in zip(results["cpu"], results["cuda"], strict=True):
        assert torch.equal(one, other.cpu())
