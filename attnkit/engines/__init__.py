"""Serving engines: names by version, command lines, drivers of their own backends."""
