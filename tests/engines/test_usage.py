"""What the engines' commands and driver say where something is missing; needs no engine."""

from __future__ import annotations

import pytest

from attnkit.engines.vllm.layer import EngineMovedError, interface
from attnkit.errors import UsageError, require_packages


def test_missing_packages_are_named() -> None:
    require_packages("this", "json")
    with pytest.raises(UsageError, match="this needs absent_one and absent_two, not installed here"):
        require_packages("this", "absent_one", "json", "absent_two")


def test_a_refused_configuration_says_nothing_of_the_backend() -> None:
    moved = pytest.raises(EngineMovedError, match="its configuration classes: ValueError: no such model")
    with moved, interface("its configuration classes", ValueError):
        raise ValueError("no such model")
    with pytest.raises(ValueError, match="the computation"), interface("something else"):
        raise ValueError("the computation")
