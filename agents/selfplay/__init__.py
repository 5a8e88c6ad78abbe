"""Self-play: new queries, asked, graded and learned from, round after round."""
