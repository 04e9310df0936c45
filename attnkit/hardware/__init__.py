"""What is in this box: guarded probes, one a vendor."""
