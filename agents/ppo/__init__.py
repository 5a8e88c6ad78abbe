"""Proximal policy optimization on the table's device: a collector, a rollout storage, an updater and an SB3 adapter."""
