"""What several tests need: tables small enough to read, and the real one where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from leeroo_env import ExpertTable
from tests.synthetic import synthetic_table

os.environ["OMP_NUM_THREADS"] = "1"  # of what tests start, too: they run beside each other
torch.set_num_threads(1)

MMLU_PRO = Path(__file__).parents[2] / "shared" / "data" / "mmlu_pro"


def random_table(n: int = 60, k: int = 4, dim: int = 5, seed: int = 0, **kwargs) -> ExpertTable:
    """Made-up scores and costs without any structure, all three splits of equal size."""
    rng = np.random.default_rng(seed)
    return ExpertTable.from_arrays(
        "random",
        [f"expert-{i}" for i in range(k)],
        rng.normal(size=(n, dim)).astype(np.float32),
        rng.integers(0, 5, size=(n, k)) / 4,
        rng.uniform(0.2, 1.8, size=(n, k)) * 1e-4 * 3.0 ** np.arange(k),
        split=[("train", "val", "test")[i % 3] for i in range(n)],
        **kwargs,
    )


@pytest.fixture
def table() -> ExpertTable:
    return random_table()


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up table whose best policy is known, as a directory."""
    path = tmp_path_factory.mktemp("tables") / "synthetic"
    synthetic_table().save(path)
    return path


@pytest.fixture
def mmlu_pro() -> Path:
    """The real table, which is not part of the project."""
    if not MMLU_PRO.is_dir():
        pytest.skip("needs ../shared/data/mmlu_pro beside the checkout")
    return MMLU_PRO
