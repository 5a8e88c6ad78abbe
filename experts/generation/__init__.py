"""New training questions: writers, a novelty filter, and references by consensus."""
