"""The command line: one file a command group, and the tables people see."""

from attnkit.cli.app import main

__all__ = ["main"]
