"""What this image was built for: `ATTNKIT_PLATFORM`, set in every image (images/Dockerfile), empty elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from attnkit.errors import NoBackendError
from attnkit.hardware.device import Detection
from attnkit.profiles.files import all_nodes, family_names
from attnkit.select.node import PLATFORM_VARIABLE as VARIABLE


def require_device(detection: Detection, environment: Mapping[str, str]) -> None:
    """Refuse a box without a device that this image is for, where it would serve from whatever else is there, slowly.

    A platform that no node type names (a new one) is not checked.

    Raises:
        NoBackendError: with what is in the box, and what the probes said.
    """
    platform = environment.get(VARIABLE, "")
    nodes = [node for node in all_nodes() if node.platform == platform and node.name not in family_names()]
    vendors = {node.match.vendor for node in nodes}
    if not vendors or any(device.vendor in vendors for device in detection.devices):
        return
    found = ", ".join(f"{device.name} ({device.arch})" for device in detection.devices) or "nothing"
    probes = "".join(f"; probe {probe.probe}: {probe.error}" for probe in detection.probes if probe.error)
    raise NoBackendError(
        f"no device: this is the {platform} image, for {', '.join(node.name for node in nodes)}, and this box has no "
        f"{' or '.join(sorted(vendors))} device (found: {found}{probes}). Give the container its device, or take the image of "
        "another platform"
    )
