"""The self-test: cases, tolerance, faults, runner, verdict.

`run_selftest` holds a backend against the float64 reference; `inject_faults` must see every injected fault caught. Importing
this package loads neither torch nor a kernel library.
"""

from attnkit.selftest.faults import FAULTS, Fault
from attnkit.selftest.results import LEVELS, CaseResult, FaultResult, Level, Outcome, Verdict
from attnkit.selftest.runner import inject_faults, run_selftest

__all__ = [
    "FAULTS",
    "LEVELS",
    "CaseResult",
    "Fault",
    "FaultResult",
    "Level",
    "Outcome",
    "Verdict",
    "inject_faults",
    "run_selftest",
]
