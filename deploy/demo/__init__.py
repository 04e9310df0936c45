"""A fleet of three nodes on one computer, from nothing to a completion from each."""
