"""Importers of published answers: each turns result files into a table directory."""
