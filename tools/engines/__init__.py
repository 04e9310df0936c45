"""Comparisons of engines with and without attnkit's attention."""
