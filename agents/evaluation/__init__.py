"""Evaluation on held-out queries: scores, bounds, metrics and reports."""
