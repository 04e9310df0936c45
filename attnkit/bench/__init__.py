"""Benchmarks: roofline, peers side by side, plots."""
