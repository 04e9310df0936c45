"""What developers run; no wheel carries it."""
