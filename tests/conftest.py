"""What several tests need: tables small enough to read, and the real one where it is at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from agents.training.config import TrainConfig
from experts.cluster.connect import Cluster as RayCluster
from experts.cluster.connect import connect
from leeroo_env import ExpertTable, InputError
from leeroo_env.manifest import MANIFEST, write_manifest
from tests.experts.openai_server import OpenAIServer
from tests.synthetic import synthetic_table

os.environ["OMP_NUM_THREADS"] = "1"  # of what tests start, too: they run beside each other
torch.set_num_threads(1)

RAY_NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
KEY = "sk-test-0123456789abcdefghijklmnop"  # must never be seen
MMLU_PRO = Path(__file__).parents[2] / "shared" / "data" / "mmlu_pro"


def random_table(
    n: int = 60, k: int = 4, dim: int = 5, seed: int = 0, names: Sequence[str] | None = None, **kwargs
) -> ExpertTable:
    """Made-up scores and costs without any structure, all three splits of equal size."""
    rng = np.random.default_rng(seed)
    return ExpertTable.from_arrays(
        "random",
        [f"expert-{i}" for i in range(k)] if names is None else list(names),
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


@pytest.fixture(scope="session")
def small_synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a fifth of the queries: fits and evaluations on it take a second."""
    path = tmp_path_factory.mktemp("tables") / "synthetic"
    synthetic_table(600).save(path)
    return path


@pytest.fixture(scope="session")
def bid_price_run(small_synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the default policy on that, not to be written to."""
    run_dir = tmp_path_factory.mktemp("runs") / "bid-price"
    assert train.run(TrainConfig(str(small_synthetic), timesteps=10_000, n_envs=32, run_dir=str(run_dir))) == 0
    return run_dir


@pytest.fixture
def mmlu_pro() -> Path:
    """The real table, which is not part of the project."""
    if not MMLU_PRO.is_dir():
        pytest.skip("needs ../shared/data/mmlu_pro beside the checkout")
    return MMLU_PRO


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    """A server that speaks OpenAI's protocol; the environment says where it is, and its key."""
    with OpenAIServer() as server:
        monkeypatch.setenv("TEST_URL", server.url)
        monkeypatch.setenv("TEST_KEY", KEY)
        yield server


def refused_in_one_line(breaks: Callable[[Path], object], message: str, directory: Path) -> None:
    """Loading a table that `breaks` has broken says `message`, and where, in one line; so it does with no manifest, or
    with a new one, which checks no more than what the files hold."""
    breaks(directory)
    if (directory / MANIFEST).exists():
        write_manifest(directory)
    with pytest.raises(InputError, match=message) as error:
        ExpertTable.load(directory)
    assert "\n" not in str(error.value)
    assert str(directory) in str(error.value)


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes on this machine, for all tests: one of them has a CPU, the other can only ask."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    soon_dead = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    head = RAY_NODE | {"num_cpus": 0, "include_dashboard": False, "_system_config": soon_dead}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(**RAY_NODE)
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="module")
def ray_cluster(ray_nodes: Any) -> Iterator[RayCluster]:
    """The same, connected to."""
    with connect(ray_nodes.address) as cluster:
        yield cluster
