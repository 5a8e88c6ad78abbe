"""Published answers as tables."""
