"""Random calls against float64: what a backend claims, it computes."""
