"""Refuses a machine without a device that this image was built for: `ATTNKIT_PLATFORM`, set in every image, empty elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from attnkit.errors import NoBackendError
from attnkit.hardware.device import Detection
from attnkit.profiles.files import family_names, read_nodes
from attnkit.select.node import PLATFORM_VARIABLE as VARIABLE


def require_device(detection: Detection, environment: Mapping[str, str]) -> None:
    """Refuse a machine without a device for this image, which would otherwise serve from whatever else is there, slowly.

    A platform that no node type names (a new one) is not checked.

    Raises:
        NoBackendError: with the devices found, and what the probes said.
    """
    platform = environment.get(VARIABLE, "")
    nodes = [node for node in read_nodes()[0] if node.platform == platform and node.name not in family_names()]
    vendors = {node.match.vendor for node in nodes}
    if not vendors or any(device.vendor in vendors for device in detection.devices):
        return
    found = ", ".join(f"{device.name} ({device.arch})" for device in detection.devices) or "nothing"
    probes = "".join(f"; probe {probe.probe}: {probe.error}" for probe in detection.probes if probe.error)
    raise NoBackendError(
        f"no device: this is the {platform} image, for {', '.join(node.name for node in nodes)}, and this machine has no "
        f"{' or '.join(sorted(vendors))} device (found: {found}{probes}). Pass the device into the container, or use another "
        "platform's image"
    )
