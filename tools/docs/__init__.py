"""Generators of the documentation: every generated page, schema and picture has its function here."""
