# mypy: ignore-errors
"""Computes what `leeroo_env.dynamics.fused` launches, as Triton kernels; imported only where triton is installed."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def play_kernel(
    rows,
    actions,
    scores,
    costs_usd,
    t,
    left_usd,
    total_score,
    cut_offs,
    calls,
    reward,
    terminated,
    score,
    cost_usd,
    cut_off,
    score_per_usd: tl.float64,
    horizon,
    width,
    n_steps: tl.constexpr,
    n_episodes,
    n_experts,
    score_row,
    score_column,
    cost_row,
    cost_column,
    BLOCK: tl.constexpr,
):
    """Plays `n_steps` of BLOCK episodes, by the rules and in the order of floating point operations of
    `leeroo_env.dynamics.transition`.

    Pointers: `rows` [B, width], `actions` [T, B], `scores` and `costs_usd` [N, K] with their strides; the state [B] and
    `calls` [B, K], which change; the outcome [T, B], written.
    """
    episode = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = episode < n_episodes
    now = tl.load(t + episode, here, 0)
    left = tl.load(left_usd + episode, here, 0)
    total = tl.load(total_score + episode, here, 0)
    cuts = tl.load(cut_offs + episode, here, 0)
    place = episode
    for _ in range(n_steps):
        action = tl.load(actions + place, here, -1)
        row = tl.load(rows + episode * width + tl.minimum(now, width - 1), here, 0)
        valid = (action >= 0) & (action < n_experts)
        expert_score = tl.load(scores + row * score_row + action * score_column, valid, 0).to(tl.float32)
        usd = tl.load(costs_usd + row * cost_row + action * cost_column, valid, float("nan")).to(tl.float64)
        cut = usd > left
        paid = tl.where(cut, left, usd)
        earned = tl.where(cut, 0.0, expert_score)
        left -= paid
        total += earned
        cuts += cut.to(tl.int64)
        now += 1
        tl.atomic_add(calls + episode * n_experts + action, 1, valid, sem="relaxed")
        tl.store(reward + place, (earned - score_per_usd * paid).to(tl.float32), here)
        tl.store(terminated + place, now >= horizon, here)
        tl.store(score + place, earned, here)
        tl.store(cost_usd + place, paid, here)
        tl.store(cut_off + place, cut, here)
        place += n_episodes
    tl.store(t + episode, now, here)
    tl.store(left_usd + episode, left, here)
    tl.store(total_score + episode, total, here)
    tl.store(cut_offs + episode, cuts, here)


@triton.jit
def sample_kernel(keys, split_rows, rows, n, a, b, horizon, n_places, rounds: tl.constexpr, BLOCK: tl.constexpr):
    """`leeroo_env.dynamics.rng.sample_without_replacement` for BLOCK of the `n_places` of `rows` [B, H], by `keys` [B]
    and with the rows of the split [n] that the drawn numbers stand for."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = place < n_places
    key = tl.load(keys + place // horizon, here, 0)
    x = _permute(place % horizon, key, a, b, rounds)
    while tl.max((x >= n).to(tl.int32), 0) > 0:
        x = tl.where(x >= n, _permute(x, key, a, b, rounds), x)
    tl.store(rows + place, tl.load(split_rows + x, here, 0), here)


@triton.jit
def _permute(x, key, a, b, rounds: tl.constexpr):
    left, right = x % a, x // a
    for i in range(0, rounds, 2):
        left = _remainder(_hash_bits(_hash_bits(key + (2 + i)) + right) + left, a)
        right = _remainder(_hash_bits(_hash_bits(key + (3 + i)) + left) + right, b)
    return left + a * right


@triton.jit
def _remainder(x, divisor):
    """Not negative, whatever the sign of x, unlike that of C."""
    r = x % divisor
    return tl.where(r < 0, r + divisor, r)


@triton.jit
def _hash_bits(x):
    """`leeroo_env.dynamics.rng.hash_bits` on int64."""
    x = x.to(tl.uint64)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return (x ^ (x >> 31)).to(tl.int64)
