"""Connects to Ray: a cluster at an address, or one on this machine for as long as it is needed."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from leeroo_env.errors import InputError

QUIET = {  # no reports to Ray's makers, and no messages of its daemons: what matters is said here
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}


@contextmanager
def ray_session(option: str, address: str | None = None, cpus: int | None = None) -> Iterator[Any]:
    """The library, connected to the cluster at an address ("host:port", or "auto" for one that runs on this machine),
    or at $RAY_ADDRESS; without either, to one that is started on this machine and ends with this block.

    Args:
        option: what needs it, for errors.
        cpus: of a cluster that is started here; all if None.

    Raises:
        InputError: Ray is not installed, or no cluster answers at the address.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    try:
        import ray
    except ImportError:
        raise InputError(f"{option} needs Ray: pip install -e '.[ray]'") from None
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if "://" in address:
        raise InputError(f"--address {address}: start this on a machine of the cluster, and give HOST:PORT or auto")
    was_connected = ray.is_initialized()
    local: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False} if address == "local" else {}
    if not was_connected:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
            except (ConnectionError, ValueError) as error:
                raise InputError(f"--address {address}: {' '.join(str(error).split())}") from None
    for name in ("ray", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if not was_connected:
            ray.shutdown()


def last_line(error: Exception) -> str:
    """The last line of an error of Ray, which may be a traceback, without the type of an InputError."""
    return str(error).strip().splitlines()[-1].removeprefix("leeroo_env.errors.InputError: ")
