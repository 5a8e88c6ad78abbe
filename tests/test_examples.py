"""The examples run, and the algorithms in them learn."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_cleanrl_ppo(synthetic: Path):
    example = runpy.run_path(str(EXAMPLES / "cleanrl_ppo.py"))
    history = example["main"](example["Args"](table=str(synthetic), total_steps=100_000))
    assert history[-1] > history[0] + 0.1


def test_contrib_qrdqn(synthetic: Path):
    assert runpy.run_path(str(EXAMPLES / "contrib_qrdqn.py"))["main"](table=str(synthetic)) > 0.5
