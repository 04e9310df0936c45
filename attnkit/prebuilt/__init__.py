"""Kernels compiled ahead of serving: which ones a boot needs, per compiler."""
