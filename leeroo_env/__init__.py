"""Models routing of queries among language models as a Gymnasium environment, `Leeroo-v0`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register

from leeroo_env.errors import InputError

if TYPE_CHECKING:
    from leeroo_env.env import LeerooEnv
    from leeroo_env.table import ExpertTable
    from leeroo_env.vector_env import LeerooVectorEnv

__all__ = ["ExpertTable", "InputError", "LeerooEnv", "LeerooVectorEnv"]
__version__ = "0.1.0"

register(
    id="Leeroo-v0",
    entry_point="leeroo_env.env:LeerooEnv",
    vector_entry_point="leeroo_env.vector_env:LeerooVectorEnv",
)

_MODULES = {"ExpertTable": "table", "LeerooEnv": "env", "LeerooVectorEnv": "vector_env"}


def __getattr__(name: str) -> Any:
    """Imports what needs torch when it is used: a worker that only asks servers takes a third of the memory without."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
