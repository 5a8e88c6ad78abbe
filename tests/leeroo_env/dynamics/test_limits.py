"""Settings and costs at the limits of numbers either work or are refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leeroo_env import ExpertTable, InputError, LeerooVectorEnv
from leeroo_env.dynamics import make_rules


def priced(*costs_usd: float) -> ExpertTable:
    """90 queries, each expert at one cost."""
    rng = np.random.default_rng(0)
    k = len(costs_usd)
    scores, costs = rng.random((90, k)), np.broadcast_to(costs_usd, (90, k))
    return ExpertTable.from_arrays(
        "priced", [str(i) for i in range(k)], rng.normal(size=(90, 4)).astype(np.float32), scores, costs
    )


@pytest.mark.parametrize("costs_usd", [(1e9, 1e8), (1e9, 1e-9), (1e-20, 3e-20), (0, 1e9), (0, 0), (1e-45, 1e-44)])
def test_costs_from_nothing_to_a_billion_dollars_work(costs_usd: tuple[float, ...]):
    env = LeerooVectorEnv(4, priced(*costs_usd), horizon=5)
    observations, _ = env.reset(seed=0)
    for _ in range(12):
        assert np.isfinite(observations).all() and env.observation_space.contains(observations)
        observations, rewards, *_ = env.step(env.action_space.sample())
        assert np.isfinite(rewards).all()


@pytest.mark.parametrize("cost_usd", [3e38, 1e30, 1.1e9, float("inf"), float("nan"), -1.0])
def test_costs_beyond_are_refused(cost_usd: float):
    with pytest.raises(InputError, match=r"column cost_usd, row 0: .* is not a cost in dollars >= 0 \(and at most 1e"):
        priced(cost_usd, 1.0)


def test_costs_too_far_apart_are_refused():
    with pytest.raises(InputError, match="mean costs of a call from 1e-30 to 1 dollars are too far apart"):
        make_rules(priced(1e-30, 1.0), horizon=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cost_weight": 1e30}, r"cost weight 1e\+30: must be 0 or more, at most 1e\+06"),
        ({"cost_weight": 1.1e6}, "cost weight"),
        ({"cost_weight": float("nan")}, "cost weight nan"),
        ({"cost_weight": -1e-9}, "cost weight"),
        ({"budget_usd_per_query": 1e300}, r"budget 1e\+300 dollars a query: must be at most 1e\+09"),
        ({"budget_usd_per_query": (1e-3, 1e10)}, r"budget 1e\+10 dollars a query"),
        ({"horizon": 10**30}, "horizon"),
        ({"max_calls": 10**30}, "max_calls"),
    ],
)
def test_settings_beyond_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message) as error:
        make_rules(priced(1e-4, 1e-3), **{"horizon": 5, **settings})
    assert "\n" not in str(error.value)
