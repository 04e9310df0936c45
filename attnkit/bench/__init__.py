"""Benchmarks: roofline, comparison with peers, plots."""

GROUPS = ("decode", "prefill", "paged", "mixed", "mla", "fp8", "tree", "dual_chunk", "differential")
DTYPES = ("bfloat16", "float16")
"""What `attnkit bench` takes; here, so that its help needs no torch."""
