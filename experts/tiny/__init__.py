"""Tiny language models that ship with the project: their questions, their training and their weights."""
