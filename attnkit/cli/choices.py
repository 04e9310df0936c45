"""What an option may be, read from the one place that owns each list, and only when a help text is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attnkit.errors import unknown_name


def _levels() -> Iterable[str]:
    from attnkit.selftest.results import LEVELS

    return LEVELS


def _faults() -> Iterable[str]:
    from attnkit.selftest import FAULTS

    return FAULTS


def _nodes() -> Iterable[str]:
    from attnkit.profiles import node_names

    return node_names()


def _workloads() -> Iterable[str]:
    from attnkit.profiles import workload_names

    return workload_names()


def _presets() -> Iterable[str]:
    from attnkit.select.model_config import presets

    return presets()


def _platforms() -> Iterable[str]:
    from attnkit.engines.vllm.names import VENDORS

    return VENDORS


def _benchmarks() -> Iterable[str]:
    from attnkit.bench import GROUPS

    return (*GROUPS, "all", "cpu")


def _dtypes() -> Iterable[str]:
    from attnkit.bench import DTYPES

    return DTYPES


CHOICES: dict[str, tuple[str, Callable[[], Iterable[str]]]] = {
    "level": ("self-test level", _levels),
    "fault": ("fault", _faults),
    "node": ("node type", _nodes),
    "workload": ("workload", _workloads),
    "model": ("model preset", _presets),
    "platform": ("platform", _platforms),
    "group": ("benchmark", _benchmarks),
    "dtype": ("dtype", _dtypes),
}
"""By parameter name: what it is called, and its values."""


def check_choice(parameter: str, value: str) -> None:
    """A UsageError with the nearest names where `value` is none that the parameter may have."""
    what, names = CHOICES[parameter]
    if value not in (known := tuple(names())):
        raise unknown_name(what, value, known)
