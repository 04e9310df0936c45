"""The self-test in a process of its own."""
