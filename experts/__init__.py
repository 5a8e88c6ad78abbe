"""Language models that answer queries, their costs, and graders of their answers."""
