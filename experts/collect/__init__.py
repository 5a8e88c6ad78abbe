"""Collecting experts' answers into a table."""
