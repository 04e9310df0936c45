"""Refuses a machine without a device that this image was built for.

`ATTNKIT_PLATFORM` is set in every image, `ATTNKIT_GPU_CODE` where libraries hold the machine code of some architectures alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from attnkit.errors import NoBackendError
from attnkit.hardware.device import Detection
from attnkit.profiles.files import family_names, read_nodes
from attnkit.select.node import PLATFORM_VARIABLE as VARIABLE

CODE_VARIABLE = "ATTNKIT_GPU_CODE"


def require_device(detection: Detection, environment: Mapping[str, str]) -> None:
    """Refuse a machine without a device for this image, which would otherwise serve from whatever else is there, slowly.

    A platform that no node type names (a new one) is not checked.

    Raises:
        NoBackendError: with the devices found, and what the probes said.
    """
    platform = environment.get(VARIABLE, "")
    nodes = [node for node in read_nodes()[0] if node.platform == platform and node.name not in family_names()]
    vendors = {node.match.vendor for node in nodes}
    if not vendors:
        return
    if any(device.vendor in vendors for device in detection.devices):
        _require_code(detection, environment)
        return
    found = ", ".join(f"{device.name} ({device.arch})" for device in detection.devices) or "nothing"
    probes = "".join(f"; probe {probe.probe}: {probe.error}" for probe in detection.probes if probe.error)
    raise NoBackendError(
        f"no device: this is the {platform} image, for {', '.join(node.name for node in nodes)}, and this machine has no "
        f"{' or '.join(sorted(vendors))} device (found: {found}{probes}). Pass the device into the container, or use another "
        "platform's image"
    )


def _require_code(detection: Detection, environment: Mapping[str, str]) -> None:
    """Refuse a machine none of whose NVIDIA devices has machine code here: of its major version, and no later minor one."""
    held = environment.get(CODE_VARIABLE, "")
    gpus = [device for device in detection.devices if device.vendor == "nvidia" and device.arch.startswith("sm_")]
    if not held or not gpus or any(_runs(code, device.arch) for code in held.split(",") for device in gpus):
        return
    found = ", ".join(f"{device.name} ({device.arch})" for device in gpus)
    raise NoBackendError(
        f"no device: this image holds GPU code for {held.replace(',', ', ')} alone, and this machine has {found}. "
        "Use an image for its architecture: make image PLATFORM=cuda ARCH=…"
    )


def _runs(code: str, arch: str) -> bool:
    """Whether machine code for one architecture (sm_86) runs on a device of another (sm_89)."""
    return code[:-1] == arch[:-1] and code[-1] <= arch[-1]
