"""Query files and data sets."""
