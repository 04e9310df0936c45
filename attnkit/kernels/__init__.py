"""Our own kernels and the tools that compile them ahead."""
