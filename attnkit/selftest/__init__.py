"""The self-test: cases, tolerance, faults, runner, verdict."""
