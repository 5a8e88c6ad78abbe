"""Runs pieces of a benchmark or a training on the Ray cluster that $RAY_ADDRESS names."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from experts.cluster.session import ray_session

T = TypeVar("T")
R = TypeVar("R")


def is_given() -> bool:
    """Whether there is a cluster to be used."""
    return bool(os.environ.get("RAY_ADDRESS"))


def map_on_cluster(option: str, function: Callable[..., R], items: Sequence[T], *shared: Any) -> list[R]:
    """The results of function(item, *shared), each in a process with one processor; an exception of any is raised when
    the others have ended. `option` as in `ray_session`."""
    with ray_session(option) as ray:
        remote, common = ray.remote(num_cpus=1, max_retries=0)(function), [ray.put(one) for one in shared]
        results = [remote.remote(item, *common) for item in items]
        ray.wait(results, num_returns=len(results), fetch_local=False)
        return list(ray.get(results))
