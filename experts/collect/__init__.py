"""Collects experts' answers into a table: asking, storing, grading, writing."""
