"""Policies: what they compute choices from, how they are initialised before training, and how they are stored."""
