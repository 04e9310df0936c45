"""Kernels for sm_90: tensor memory, warp groups, asynchronous matrix instructions."""
