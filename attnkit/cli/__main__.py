"""`python -m attnkit.cli`."""

from attnkit.cli.app import main

main()
