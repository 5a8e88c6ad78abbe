"""What is deployed is chosen on val by the rule, and its intervals hold what they say."""

from __future__ import annotations

import numpy as np
import pytest

from agents.evaluation.decision import choose, choose_calls, mean_interval, reference_experts, savings
from agents.evaluation.evaluate import Result, always
from leeroo_env import ExpertTable

N = 400
BUDGETS = [1.0, 2.0, 4.0]


def table_of(scores: list[float], costs_usd: list[float], seed: int = 0) -> ExpertTable:
    """Experts of these mean scores and costs on every split."""
    rng = np.random.default_rng(seed)
    right = np.stack([rng.permutation(np.arange(3 * N) < round(3 * N * score)) for score in scores], axis=1)
    return ExpertTable.from_arrays(
        "made up",
        [f"e{k}" for k in range(len(scores))],
        rng.normal(size=(3 * N, 3)).astype(np.float32),
        right.astype(float),
        np.tile(costs_usd, (3 * N, 1)),
        split=[("train", "val", "test")[i % 3] for i in range(3 * N)],
    )


def result_of(table: ExpertTable, scores: list[float], cost_usd: list[float]) -> Result:
    """A router that scores so at each budget, right on the first queries of val."""
    rows = table.rows("val").numpy()
    scored = np.stack([(np.arange(N) < round(N * score)).astype(float) for score in scores])
    paid = np.repeat(np.array(cost_usd)[:, None], N, axis=1)
    k = len(table.experts)
    return Result(
        score=scored.mean(axis=1),
        cost_usd=np.array(cost_usd),
        stderr=scored.std(axis=1) / np.sqrt(N),
        calls=np.ones((3, k)) / k,
        cut_off=np.zeros(3),
        chosen=np.zeros((3, N), dtype=np.int64),
        rows=np.tile(rows, (3, 1)),
        scored=scored,
        paid_usd=paid,
    )


def test_the_cheapest_budget_that_matches_the_best_expert():
    table = table_of([0.3, 0.7], [1.0, 4.0])
    agent = result_of(table, [0.5, 0.75, 0.8], BUDGETS)
    choice = choose(table, BUDGETS, {"agent": agent}, [0, 1, 2])
    assert (choice.name, choice.budget_usd, choice.matches) == ("agent", 2.0, True)


@pytest.mark.parametrize(
    ("several", "kept", "worst"),
    [
        ([0.50, 0.60, 0.70], False, 0),  # no different, and one call is simpler
        ([0.50, 0.64, 0.70], True, 0),
        ([0.48, 0.62, 0.74], False, 0),  # 8 queries less, nearly three standard errors
        ([0.4925, 0.62, 0.72], True, 0),  # 3 queries less: less than two standard errors
        ([0.50, 0.60, 0.6975], False, 2),  # no more than that, but less in the mean
        ([0.60, 0.70, 0.60], False, 2),
    ],
)
def test_several_calls_are_kept_where_they_are_better(several: list[float], kept: bool, worst: int):
    table = table_of([0.3, 0.7], [1.0, 4.0])
    one = result_of(table, [0.5, 0.6, 0.7], BUDGETS)
    choice = choose_calls(BUDGETS, result_of(table, several, BUDGETS), one, 4)
    assert (choice.several, choice.max_calls) == (kept, 4)
    assert choice.gain == pytest.approx(np.mean(several) - 0.6)
    assert choice.worst_budget_usd_per_1000_queries == 1000 * BUDGETS[worst]
    assert choice.worst_gain == pytest.approx(several[worst] - one.score[worst])


def test_a_router_that_is_clearly_better_takes_the_agents_place():
    table = table_of([0.3, 0.7], [1.0, 4.0])
    agent, router = result_of(table, [0.5, 0.75, 0.8], BUDGETS), result_of(table, [0.72, 0.8, 0.9], BUDGETS)
    choice = choose(table, BUDGETS, {"agent": agent, "paced kNN": router}, [0, 1, 2])
    assert (choice.name, choice.budget_usd) == ("paced kNN", 1.0) and choice.best_router == "paced kNN"


def test_a_router_that_is_hardly_better_does_not():
    table = table_of([0.3, 0.7], [1.0, 4.0])
    agent, router = result_of(table, [0.5, 0.75, 0.8], BUDGETS), result_of(table, [0.5, 0.7525, 0.8], BUDGETS)
    assert choose(table, BUDGETS, {"agent": agent, "paced kNN": router}, [0, 1, 2]).name == "agent"


def test_a_single_expert_that_scores_as_much_for_no_more_is_preferred():
    table = table_of([0.7, 0.3], [1.0, 4.0])
    choice = choose(table, BUDGETS, {"agent": result_of(table, [0.7, 0.7, 0.7], BUDGETS)}, [0, 1, 2])
    assert (choice.name, choice.expert, choice.budget_usd) == ("always e0", 0, 1.0)


def test_where_the_best_expert_is_never_matched_it_is_the_cheapest_that_keeps_95_percent():
    table = table_of([0.1, 0.9], [1.0, 4.0])
    choice = choose(table, BUDGETS, {"agent": result_of(table, [0.2, 0.88, 0.88], BUDGETS)}, [0, 1, 2])
    assert (choice.name, choice.budget_usd, choice.matches) == ("agent", 2.0, False)


def test_where_nothing_comes_near_it_is_the_best_expert():
    table = table_of([0.1, 0.9], [1.0, 4.0])
    choice = choose(table, BUDGETS, {"agent": result_of(table, [0.05, 0.2, 0.8], BUDGETS)}, [0, 1, 2])
    assert (choice.name, choice.matches) == ("always e1", True)


def test_only_budgets_that_may_be_deployed_are_chosen():
    table = table_of([0.3, 0.7], [1.0, 4.0])
    agent = result_of(table, [0.5, 0.75, 0.8], BUDGETS)
    assert choose(table, BUDGETS, {"agent": agent}, [2]).budget_usd == 4.0
    cheap = choose(table, BUDGETS, {"agent": result_of(table, [0.0, 0.0, 0.0], BUDGETS)}, [0])
    assert cheap.name == "always e0", "the best expert costs more than the budget"


def test_test_queries_decide_nothing():
    table = table_of([0.3, 0.7], [1.0, 4.0])
    agent = result_of(table, [0.5, 0.75, 0.8], BUDGETS)
    before = choose(table, BUDGETS, {"agent": agent}, [0, 1, 2])
    table.scores[table.rows("test")] = 0.0
    assert choose(table, BUDGETS, {"agent": agent}, [0, 1, 2]) == before


def test_experts_to_compare_with():
    assert reference_experts(table_of([0.5, 0.9, 0.2], [1.0, 2.0, 4.0])) == (1, 2)
    assert reference_experts(table_of([0.0, 0.0], [0.0, 0.0])) == (0, 0)


def test_intervals_hold_the_mean_and_the_ratio_as_often_as_they_say():
    """Queries played several times: errors are those of the queries, not of the plays."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        score, paid = rng.random(60), rng.gamma(2.0, size=60)
        instead = 3.0 + rng.gamma(2.0, size=60)
        played = rng.integers(0, 60, size=500)
        mean = mean_interval(score[played], played)
        saved = savings(paid[played], instead[played], played)
        assert saved is not None
        held.append((mean.low <= 0.5 <= mean.high, saved.low <= 1 - 2 / 5 <= saved.high))
    assert (np.mean(held, axis=0) > 0.91).all() and (np.mean(held, axis=0) < 0.99).all()


def test_one_query_has_no_interval_and_nothing_is_saved_of_nothing():
    assert np.isnan(mean_interval(np.ones(3), np.zeros(3, dtype=int)).low)
    assert savings(np.ones(2), np.zeros(2), np.arange(2)) is None


def test_one_expert_alone_costs_and_scores_what_the_table_says():
    table = table_of([0.3, 0.7], [1.0, 4.0])
    alone = always(table, 1, result_of(table, [0.5, 0.5, 0.5], BUDGETS))
    rows = table.rows("val").numpy()
    assert alone.score.tolist() == pytest.approx([float(table.scores[rows, 1].mean())] * 3)
    assert alone.cost_usd.tolist() == [4.0] * 3 and alone.calls.tolist() == [[0, 1]] * 3
