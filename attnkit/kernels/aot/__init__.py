"""Triton kernels compiled ahead of time: planned, built, verified against a manifest, and used."""
