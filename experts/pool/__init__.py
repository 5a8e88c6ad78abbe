"""A pool of experts: reading pool.yaml, creating the experts, and the keys of their stored answers."""

from experts.pool.factory import make_expert, make_experts, with_cap
from experts.pool.keys import keys_for
from experts.pool.loader import load_pool

__all__ = ["keys_for", "load_pool", "make_expert", "make_experts", "with_cap"]
