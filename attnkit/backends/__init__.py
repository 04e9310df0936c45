"""Implementations of attention, one file a family."""
