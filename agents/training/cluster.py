"""Runs work on a Ray cluster, where $RAY_ADDRESS names one, else on a Ray of this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from leeroo_env import InputError

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def connected(option: str) -> Iterator[Any]:
    """The library, connected until the block ends. Raises InputError, which names the `option` that needs it, where it
    is missing or no cluster answers."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise InputError(f"{option}: ray is missing: pip install 'leeroo[ray]'") from None
    was_connected = ray.is_initialized()
    if not was_connected:
        address = os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {} if address else {"include_dashboard": False}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"RAY_ADDRESS {address}: {' '.join(str(error).split())}") from None
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if not was_connected:
            ray.shutdown()


def is_given() -> bool:
    """Whether there is a cluster to be used."""
    return bool(os.environ.get("RAY_ADDRESS"))


def map_on_cluster(option: str, function: Callable[..., R], items: Sequence[T], *shared: Any) -> list[R]:
    """The results of function(item, *shared), each in a process with one processor; an exception of any is raised when
    the others have ended. `option` as in `connected`."""
    with connected(option) as ray:
        remote, common = ray.remote(num_cpus=1, max_retries=0)(function), [ray.put(one) for one in shared]
        results = [remote.remote(item, *common) for item in items]
        ray.wait(results, num_returns=len(results), fetch_local=False)
        return list(ray.get(results))
