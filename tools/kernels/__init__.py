"""Machine code: cross-compiling, inspecting and modelling kernels."""
