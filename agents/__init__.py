"""Agents that learn to route, the routers that they are compared with, and the trained orchestrator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.serving.orchestrator import Orchestrator

__all__ = ["Orchestrator"]


def __getattr__(name: str) -> Any:
    """Imports the orchestrator when it is asked for: it takes seconds, and `leeroo --help` does not need it."""
    if name != "Orchestrator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from agents.serving.orchestrator import Orchestrator

    return Orchestrator
