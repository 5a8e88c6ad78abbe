"""Samples episodes, and plays many steps of actions known beforehand: on a GPU in one launch of a Triton kernel each.

Random play, replays and the statistics of fixed routers know their actions; a policy that looks at the budget does not.
A kernel keeps in registers what torch, which launches one for every operation, writes to memory and reads again. Triton
compiles at the first launch with each T, its launcher with a C compiler.

B episodes, T steps, H queries per episode, K experts.
"""

from __future__ import annotations

from dataclasses import fields, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from leeroo_env.dynamics.rng import feistel_sizes
from leeroo_env.dynamics.rules import Rules
from leeroo_env.dynamics.state import State, new_episodes, sample_budgets_usd, sample_episodes
from leeroo_env.dynamics.transition import Outcome, score_per_usd, step
from leeroo_env.tensors import normal_tensors

BLOCK = 64  # of a program, one a thread: of episodes that are played, or of queries that are sampled
# Multiply and add are not fused, which would round otherwise than torch.
SETTINGS = {"BLOCK": BLOCK, "num_warps": BLOCK // 32, "enable_fp_fusion": False}


@normal_tensors
def sample(rules: Rules, keys: Tensor) -> State:
    """`sample_episodes`, on a GPU with rows in one launch where triton is installed."""
    if keys.is_cuda and find_spec("triton"):
        return new_episodes(rules, sample_rows(rules, keys), sample_budgets_usd(rules, keys) * rules.horizon)
    return sample_episodes(rules, keys)


def sample_rows(rules: Rules, keys: Tensor) -> Tensor:
    """The rows [B, H] of `sample_episodes` by the kernel, on a CPU as `play_in_one_launch`; it writes 8 bytes each."""
    from leeroo_env.dynamics.fused_kernels import sample_kernel

    a, b, rounds = feistel_sizes(len(rules.rows))
    rows = torch.empty(len(keys), rules.horizon, dtype=torch.int64, device=keys.device)
    sizes = (len(rules.rows), a, b, rules.horizon, rows.numel(), rounds)
    grid = (-(-rows.numel() // BLOCK),)
    with torch.cuda.device_of(keys):
        sample_kernel[grid](keys.contiguous(), rules.rows.contiguous(), rows, *sizes, **SETTINGS)
    return rows


@normal_tensors
def play(rules: Rules, state: State, actions: Tensor) -> tuple[State, Outcome]:
    """What `actions.shape[0]` calls of `step` return: the state after them, and their outcomes, each [T, B].

    In one launch on a GPU where triton is installed and queries take one call; else step by step, with equal results.
    The kernel raises no error for an action outside 0 to K - 1: it is no call, and turns the episode's money into NaN.

    Args:
        rules: of the episodes.
        state: before the first step.
        actions: [T, B] int64, the experts to call, T at least 1.
    """
    if rules.max_calls == 1 and actions.is_cuda and find_spec("triton"):
        return play_in_one_launch(rules, state, actions)
    outcomes = []
    for chosen in actions:
        state, outcome = step(rules, state, chosen)
        outcomes.append(outcome)
    return state, Outcome(**{f.name: torch.stack([getattr(o, f.name) for o in outcomes]) for f in fields(Outcome)})


def play_in_one_launch(rules: Rules, state: State, actions: Tensor) -> tuple[State, Outcome]:
    """`play` with one call per query by the kernel; on a CPU too, by Triton's interpreter, where TRITON_INTERPRET=1 was
    set before triton was imported.

    A program plays BLOCK episodes, whose time, money, score and cut-offs stay in registers. A step of an episode reads
    its row and action, 8 bytes each, looks up a score and a cost, 8 or 6 bytes, counts the call, 4 bytes that stay in a
    cache, and writes 18 bytes of outcome. `step` reads and writes the state besides.
    """
    from leeroo_env.dynamics.fused_kernels import play_kernel

    (n_steps, b), actions, table = actions.shape, actions.contiguous(), rules.table
    state_fields = ("t", "left_usd", "score", "cut_off", "calls")
    changed = {name: getattr(state, name).clone(memory_format=torch.contiguous_format) for name in state_fields}
    kinds = {"reward": torch.float32, "terminated": torch.bool, "score": torch.float32, "cost_usd": torch.float64}
    kinds |= {"cut_off": torch.bool}
    told = {name: torch.empty(n_steps, b, dtype=kind, device=actions.device) for name, kind in kinds.items()}
    with torch.cuda.device_of(actions):
        play_kernel[(-(-b // BLOCK),)](
            state.rows.contiguous(),
            actions,
            table.scores,
            table.costs_usd,
            *changed.values(),
            *told.values(),
            score_per_usd(rules),
            rules.horizon,
            state.rows.shape[1],
            n_steps,
            b,
            len(table.experts),
            *table.scores.stride(),
            *table.costs_usd.stride(),
            **SETTINGS,
        )
    delivered = torch.ones(1, dtype=torch.bool, device=actions.device).expand(n_steps, b)
    return replace(state, **changed, steps=changed["t"]), Outcome(**told, delivered=delivered)
