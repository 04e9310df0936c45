"""Every scenario of the lab, in the order in which they run."""

from __future__ import annotations

from deploy.lab import faults, routine
from deploy.lab.scenario import Scenario

ALL: tuple[Scenario, ...] = (*routine.SCENARIOS, *faults.SCENARIOS)
