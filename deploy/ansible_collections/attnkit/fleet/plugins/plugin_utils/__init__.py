"""What several plugins of the controller share."""
