"""Contracts: every call that our backends make into a provider's package, checked against that package as it was published.

For most providers nobody has the hardware at hand. What can be checked without it: that the functions our `run` imports are
there, and take what it passes. `python -m tools.contracts` downloads the packages, reads them with `ast` (they are never
imported), runs every backend's own `run` against stand-ins with the signatures found there, and writes a report.

    package.py   a wheel or source distribution: its modules, definitions, signatures
    stand_in.py  modules to import in place of the package, whose functions bind what they are called with
    table.py     which provider is checked against which package, and what must arrive in which parameter
    calls.py     the calls: one for every feature that a provider claims
    check.py     one contract checked
    fetch.py     packages from PyPI, kept in a folder

What this cannot see: whether the provider computes what we mean by the call. That is the self-test's work, on the hardware.
"""
