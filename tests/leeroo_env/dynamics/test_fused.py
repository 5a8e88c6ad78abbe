"""Many steps at once are the steps that `dynamics.step` plays, by the kernel too; the kernels compile for a GPU."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leeroo_env import dynamics
from leeroo_env.dynamics.fused import BLOCK, play, play_in_one_launch, sample, sample_rows
from tests.conftest import random_table
from tests.leeroo_env.dynamics.fused_parity import CASES, SAMPLED, started

ROOT = Path(__file__).parents[3]
needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="triton, of torch's CUDA builds, is not installed")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What the kernel's steps differ by from `dynamics.step`, in Triton's interpreter, in all cases."""
    command = [sys.executable, "-m", "tests.leeroo_env.dynamics.fused_parity"]
    told = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_plays_by_the_rules_to_the_bit(case: str, interpreted: dict[str, Any]):
    differences = interpreted["compared"][case]
    cut_off = differences.pop("cut off")
    assert differences == {}
    assert cut_off > 0.8 if case == "money runs out" else 0 <= cut_off < 0.8


@needs_triton
def test_a_choice_of_no_expert_reads_nothing_and_shows(interpreted: dict[str, Any]):
    lost, calls, t = interpreted["no action"]
    assert lost == [True, True, False] and calls == [0, 0, 2] and t == [2, 2, 2]


@needs_triton
@pytest.mark.parametrize("case", range(len(SAMPLED)), ids=str)
def test_the_kernel_samples_the_same_rows(case: int, interpreted: dict[str, Any]):
    assert interpreted["sampled"][case], SAMPLED[case]


class H100:
    """What compiling asks of triton's driver, which needs a GPU; a device number that no real one has."""

    get_current_target = staticmethod(
        lambda: importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    )
    get_current_device = staticmethod(lambda: 90)
    get_current_stream = staticmethod(lambda device: 0)


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize(
    "case",
    [{}, {"scores": torch.Tensor.half}, {"k": 1, "b": 1, "horizon": 1}, {"scores": lambda x: x[:1].expand_as(x)}],
    ids=["usual", "half precision", "every size 1", "one row"],
)
def test_what_is_launched_compiles_for_an_h100(case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Numbers that are 1 and multiples of 16 compile otherwise than others."""
    from triton.runtime import driver

    from leeroo_env.dynamics import fused_kernels

    compiled = {}

    def launch(kernel: Any, *args: Any, grid: Any, **settings: Any) -> None:
        compiled[kernel.__name__] = kernel.warmup(*args, grid=grid, **settings).asm

    rules, state = started(0, **case)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", H100())
    monkeypatch.setattr(
        type(fused_kernels.play_kernel), "__getitem__", lambda kernel, grid: partial(launch, kernel, grid=grid)
    )
    play_in_one_launch(rules, state, state.rows.T % len(rules.table.experts))
    sample_rows(rules, state.t)
    for assembly in compiled.values():
        assert ".target sm_90" in assembly["ptx"] and f".reqntid {BLOCK}" in assembly["ptx"]
        assert "fma.rn" not in assembly["ptx"] and len(assembly["cubin"]) > 0
    play_ptx = compiled["play_kernel"]["ptx"]
    assert re.search(r"(red|atom).global", play_ptx) and "bar." not in play_ptx, "an episode a thread, alone"
    assert len(compiled) == 2


@pytest.mark.parametrize("max_calls", [1, 3])
def test_a_cpu_plays_step_by_step(max_calls: int):
    answers = np.random.default_rng(0).choice(np.array(["A", "B", None], dtype=object), size=(60, 4))
    rules = dynamics.make_rules(random_table(answers=answers), horizon=6, max_calls=max_calls)
    number = torch.arange(9)
    before = state = dynamics.sample_episodes(rules, dynamics.episode_keys(number, number))
    actions = torch.randint(rules.n_actions, (5, 9), generator=torch.Generator().manual_seed(0))
    after, outcome = play(rules, before, actions)
    for t in range(5):
        state, expected = dynamics.step(rules, state, actions[t])
        for name, value in vars(expected).items():
            assert torch.equal(getattr(outcome, name)[t], value), name
    for name, value in vars(state).items():
        assert torch.equal(getattr(after, name), value), name


def test_a_cpu_samples_as_ever():
    rules, keys = dynamics.make_rules(random_table(), horizon=6), torch.arange(9)
    for name, value in vars(dynamics.sample_episodes(rules, keys)).items():
        assert torch.equal(getattr(sample(rules, keys), name), value), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: compares the kernel with a CPU's steps")
def test_a_gpu_plays_the_same():
    rules, state = started(0, b=1000)
    actions = torch.randint(5, (12, 1000), generator=torch.Generator().manual_seed(0))
    there = dynamics.make_rules(rules.table.to("cuda"), horizon=12, cost_weight=0.3)
    moved = dynamics.State(**{name: value.to("cuda") for name, value in vars(state).items()})
    keys = torch.arange(1000)
    assert torch.equal(sample(there, keys.to("cuda")).rows.cpu(), dynamics.sample_episodes(rules, keys).rows)
    for ours, theirs in zip(play(there, moved, actions.to("cuda")), play(rules, state, actions), strict=True):
        for name, value in vars(theirs).items():
            other = getattr(ours, name).cpu()
            assert torch.equal(other, value) or torch.allclose(other.double(), value.double(), atol=1e-6), name
