"""benchmarks/speed.py measures the rows of the environment on a GPU, here on a CPU."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import random_table

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_rows_of_the_environment_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    speed = importlib.import_module("speed")
    monkeypatch.setattr("measuring.copy_bytes_per_s", lambda *_: 1e9)
    setup = speed.Setup("random", random_table(n=200), torch.device("cpu"), pairs=1, quick=True, peers=None)
    stepped, known = speed.cuda_env(setup, 16, 2e9)
    assert (stepped.mark, known.mark) == (None, 2e9)
    assert known.what == "GPU: environment, 16 episodes, actions known beforehand"
    assert all(np.isfinite(row.values).all() and row.values[0] > 0 for row in (stepped, known))
    assert "50 B each at 1 GB/s" in known.note
