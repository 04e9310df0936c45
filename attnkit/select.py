"""Choosing a backend: a pure function of devices, need, profile and what is installed.

The answer is an object, not a log line: what was chosen, what else would have worked in which order, and every reason against
the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnkit.backends.base import Accepted, Installed, Rejected
from attnkit.hardware.device import Device
from attnkit.spec import AttentionSpec


@dataclass(frozen=True)
class Decision:
    """The outcome of `select`.

    Args:
        device: the device it was made for.
        spec: the need.
        accepted: backends that can serve, in order of preference; the first is the choice. Empty: nothing can.
        rejected: every other backend with its reasons (code "policy": it could serve, but the profile's order leaves it out).
        explicit: the name asked for, None where the order of the profile (or the built-in order of the device) decided.
        order: the names tried, first choice first, and where that order came from.
        order_source: "explicit", "profile NAME" or "built-in for sm_90".
        warnings: what a person should know though it is no reason against (a workload set aside, a dtype changed …).
    """

    device: Device
    spec: AttentionSpec
    accepted: tuple[Accepted, ...]
    rejected: tuple[Rejected, ...]
    explicit: str | None
    order: tuple[str, ...]
    order_source: str
    warnings: tuple[str, ...] = ()

    @property
    def chosen(self) -> Accepted | None:
        return self.accepted[0] if self.accepted else None


def select(
    device: Device,
    spec: AttentionSpec,
    installed: Installed,
    *,
    order: Sequence[str] | None = None,
    order_source: str = "",
    explicit: str | None = None,
    workload: str | None = None,
) -> Decision:
    """Choose a backend. Pure: same arguments, same answer; nothing is imported, probed or logged.

    Args:
        device: see `Device`.
        spec: what is needed.
        installed: versions by requirement name; see `attnkit.select.installed_versions`.
        order: names to try, first choice first (any spelling); None takes the built-in order for the device.
        order_source: where `order` came from, for the report.
        explicit: one name that must be taken. It works or is rejected with its reasons; nothing replaces it.
        workload: name of the workload, where it allows what is otherwise never chosen (debug: NO_ATTENTION stays explicit).

    Raises:
        UsageError: a name in `order` or `explicit` is unknown.
    """
    raise NotImplementedError
