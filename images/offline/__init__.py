"""The bundle for hosts without a network, and its installer, which runs alone on such a host."""
