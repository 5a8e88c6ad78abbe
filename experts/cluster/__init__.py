"""Runs the work of a collection on a Ray cluster: asking, grading, embedding and reading queries."""
