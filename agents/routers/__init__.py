"""Routers without reinforcement learning, which the agent is compared with, and the trained policy as a router.

They may use what the agent may use: scores and costs of the training split, and val to select settings by. Routers
that observe the query come once for each estimator, so that a comparison with the agent separates better estimates
from better use of the same estimates.
"""

from agents.routers.base import Context, Router, within_reserve
from agents.routers.boosted import TwoStageTrees
from agents.routers.cascade import Cascade, Gains, Majority, Scorer
from agents.routers.cascade_routing import CascadeRouting
from agents.routers.function import FunctionRouter, from_function
from agents.routers.panels import Panels
from agents.routers.planned import Planned
from agents.routers.policy import PolicyRouter
from agents.routers.priced import FixedPrice, PacedPrice
from agents.routers.registry import ESTIMATORS, multi_call_routers, one_call_routers
from agents.routers.static import BestSingle, Cheapest, FixedMixture, Random
from agents.routers.two_step import TwoStep

__all__ = [
    "ESTIMATORS",
    "BestSingle",
    "Cascade",
    "CascadeRouting",
    "Cheapest",
    "Context",
    "FixedMixture",
    "FixedPrice",
    "FunctionRouter",
    "Gains",
    "Majority",
    "PacedPrice",
    "Panels",
    "Planned",
    "PolicyRouter",
    "Random",
    "Router",
    "Scorer",
    "TwoStageTrees",
    "TwoStep",
    "from_function",
    "multi_call_routers",
    "one_call_routers",
    "within_reserve",
]
