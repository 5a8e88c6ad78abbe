"""Computes the rules of an episode, as pure functions over batches of episodes.

In an episode, H queries arrive one at a time and a budget in dollars has to last for all of them. With one call per
query, every step chooses the expert that answers the current query. With up to M calls per query, every step calls one
more expert or stops and delivers the answer with the most votes. Environments, evaluation and training use these
functions alone; the same inputs give the same episodes on every device.

B episodes, H queries per episode, N queries in the table, K experts, M: max_calls, F features of a query.
"""

from leeroo_env.dynamics.fused import play
from leeroo_env.dynamics.observation import (
    action_mask,
    budget_features,
    call_features,
    call_mask,
    observe,
    state_mask,
)
from leeroo_env.dynamics.rng import episode_keys
from leeroo_env.dynamics.rules import COST_WEIGHT, HORIZON, MAX_EVIDENCE, Rules, budget_grid, make_rules
from leeroo_env.dynamics.state import (
    State,
    current_rows,
    new_episodes,
    replace_ended,
    replace_episodes,
    sample_episodes,
    select_episodes,
)
from leeroo_env.dynamics.transition import Outcome, step
from leeroo_env.dynamics.voting import VoteCount, count_votes, vote_weight

__all__ = [
    "COST_WEIGHT",
    "HORIZON",
    "MAX_EVIDENCE",
    "Outcome",
    "Rules",
    "State",
    "VoteCount",
    "action_mask",
    "budget_features",
    "budget_grid",
    "call_features",
    "call_mask",
    "count_votes",
    "current_rows",
    "episode_keys",
    "make_rules",
    "new_episodes",
    "observe",
    "play",
    "replace_ended",
    "replace_episodes",
    "sample_episodes",
    "select_episodes",
    "state_mask",
    "step",
    "vote_weight",
]
