"""Policies: what they decide by, how they start, and how they are stored."""
