"""Our CPU kernels: C++ sources, how they are compiled ahead of time, and the call into them."""
