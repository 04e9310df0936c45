"""JAX Pallas kernels for TPU, one operation a file."""
