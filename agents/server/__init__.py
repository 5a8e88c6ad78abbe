"""The live server: one address in front of all models, with budgets that hold."""
