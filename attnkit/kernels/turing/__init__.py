"""Tensor cores of sm_75 for Triton kernels."""
