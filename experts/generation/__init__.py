"""New questions for training: writers, novelty filter, consensus references."""
