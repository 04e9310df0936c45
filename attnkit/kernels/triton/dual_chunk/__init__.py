"""Dual chunk attention."""
