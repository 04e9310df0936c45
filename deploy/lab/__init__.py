"""Fault injection: a heterogeneous fleet of stand-ins on one computer, and scenarios that a rollout must survive."""
