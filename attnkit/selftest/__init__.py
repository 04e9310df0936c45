"""The self-test: cases, tolerance, faults, runner, verdict.

`run_selftest` holds a backend against the float64 reference; `prove` plants faults and must see every one caught. Importing
this package loads neither torch nor a kernel library.
"""

from attnkit.selftest.faults import FAULTS, Fault
from attnkit.selftest.results import LEVELS, CaseResult, Level, Outcome, Verdict
from attnkit.selftest.runner import ProofResult, prove, run_selftest

__all__ = ["FAULTS", "LEVELS", "CaseResult", "Fault", "Level", "Outcome", "ProofResult", "Verdict", "prove", "run_selftest"]
