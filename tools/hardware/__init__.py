"""What writes attnkit's hardware tables."""
