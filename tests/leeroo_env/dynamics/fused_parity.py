"""Samples and plays random episodes by the Triton kernels in its interpreter, beside torch; prints as JSON, for every
case, how they differ. A program of its own: TRITON_INTERPRET=1 has to be set before triton is imported."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from leeroo_env import ExpertTable, dynamics
from leeroo_env.dynamics import Rules, State
from leeroo_env.dynamics.fused import play, play_in_one_launch, sample_rows

CASES: dict[str, dict[str, Any]] = {
    "one expert, one episode": {"k": 1, "b": 1},
    "a block less one": {"b": 63},
    "a block": {"b": 64, "k": 3},
    "a block and one": {"b": 65},
    "several blocks, 300 experts": {"b": 150, "k": 300, "horizon": 4, "n_steps": 4},
    "scores in half precision": {"scores": torch.Tensor.half},
    "transposed in memory": {"scores": lambda x: x.T.contiguous().T, "costs": lambda x: x.T.contiguous().T},
    "one row for all queries": {"scores": lambda x: x[:1].expand_as(x), "costs": lambda x: x[:1].expand_as(x)},
    "money runs out": {"budget": 1.2e-4, "k": 6},
    "the last call takes all that is left": {"budget": 2**-10, "costs": lambda x: torch.full_like(x, 2**-10)},
    "dollars beside a fortune": {"budget": 1e9, "costs": lambda x: x * 1e4},
    "free experts": {"costs": torch.zeros_like},
    "no weight of costs": {"weight": 0.0},
    "from the middle, a part": {"before": 5, "n_steps": 3},
    "from different queries": {"before": 4, "n_steps": 6, "staggered": True},
    "beyond the last query": {"before": 9, "n_steps": 6},
    "one step": {"n_steps": 1},
    "one query": {"horizon": 1, "n_steps": 1},
    "actions of every other step": {"action_stride": 2},
}


SAMPLED = ((1, 1), (2, 1), (3, 3), (5, 2), (49, 48), (50, 50), (1000, 7), (10_000, 4))  # queries of a split, horizon


def started(
    seed: int,
    k: int = 5,
    b: int = 70,
    horizon: int = 12,
    budget: float | None = None,
    weight: float = 0.3,
    before: int = 0,
    staggered: bool = False,
    scores: Any = torch.Tensor.clone,
    costs: Any = torch.Tensor.clone,
) -> tuple[Rules, State]:
    """Rules of a random table, and episodes of which `before` random steps have been played."""
    rng, n = np.random.default_rng(seed), 120
    costs_usd = rng.uniform(0.2, 1.8, (n, k)) * np.geomspace(1e-4, 3e-3, k)
    experts, embeddings = [f"expert-{i}" for i in range(k)], rng.normal(size=(n, 2)).astype(np.float32)
    table = ExpertTable.from_arrays("random", experts, embeddings, rng.integers(0, 5, (n, k)) / 4, costs_usd)
    table = replace(table, scores=scores(table.scores), costs_usd=costs(table.costs_usd))
    rules = dynamics.make_rules(table, horizon=horizon, budget_usd_per_query=budget, cost_weight=weight)
    number = torch.arange(b)
    fresh = dynamics.sample_episodes(rules, dynamics.episode_keys(torch.full_like(number, seed), number))
    state = play(rules, fresh, torch.randint(k, (before, b)))[0] if before else fresh
    return rules, dynamics.replace_ended(state, number % 3 == 0, fresh) if staggered else state


def differences(seed: int, n_steps: int = 12, action_stride: int = 1, **given: Any) -> dict[str, float]:
    """The fields of the two states and outcomes that are not equal to the bit, and by how much they differ at most."""
    rules, state = started(seed, **given)
    actions = torch.randint(len(rules.table.experts), (n_steps * action_stride, len(state.t)))[::action_stride]
    found = {"cut off": float(play(rules, state, actions)[1].cut_off.double().mean())}
    for ours, theirs in zip(play_in_one_launch(rules, state, actions), play(rules, state, actions), strict=True):
        for name, value in vars(theirs).items():
            other = getattr(ours, name)
            assert other.dtype == value.dtype and other.shape == value.shape, name
            if not torch.equal(other, value):
                found[name] = float((other.double() - value.double()).abs().max())
    return found


def sampled_alike(n: int, horizon: int) -> bool:
    """Whether the kernel samples the rows that torch does, of a split of every other query."""
    rng = np.random.default_rng(0)
    embeddings, scores, costs_usd = rng.random((3, 2 * n, 1))
    table = ExpertTable.from_arrays("random", ["expert"], embeddings, scores, costs_usd, split=["val", "train"] * n)
    rules, number = dynamics.make_rules(table, horizon=horizon), torch.arange(21)
    keys = dynamics.episode_keys(torch.full_like(number, n), number)
    return torch.equal(sample_rows(rules, keys), dynamics.sample_episodes(rules, keys).rows)


def after_no_action() -> list[Any]:
    """Money, calls and time after the actions -1, K and 0, two steps each."""
    rules, state = started(0, k=4, b=3)
    after, _ = play_in_one_launch(rules, state, torch.tensor([[-1, 4, 0]]).expand(2, -1))
    return [after.left_usd.isnan().tolist(), after.calls.sum(dim=1).tolist(), after.t.tolist()]


if __name__ == "__main__":
    torch.manual_seed(0)
    compared = {name: differences(i, **case) for i, (name, case) in enumerate(CASES.items())}
    sampled = [sampled_alike(*case) for case in SAMPLED]
    print(json.dumps({"compared": compared, "sampled": sampled, "no action": after_no_action()}))
