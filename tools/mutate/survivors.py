"""Why a mutant that nothing noticed is none that counts: it computes the same, or what no call asks of it."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, str] = {}
"""By the mutant's name (`Mutant.name`). What is not here counts as missed."""
