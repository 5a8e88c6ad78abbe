"""Agents that learn to route, the routers they have to beat, and the trained orchestrator."""

from agents.serving.orchestrator import Orchestrator

__all__ = ["Orchestrator"]
