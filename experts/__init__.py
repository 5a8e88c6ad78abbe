"""Language models that answer queries, what they cost, and whether they were right."""
