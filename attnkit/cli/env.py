"""`attnkit env`: what a report of a problem should carry."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from attnkit.cli.options import Json, Root, print_json

_STEERING = ("ATTNKIT_", "VLLM_", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def env(root: Root = Path("/"), json: Json = False) -> None:
    """Show versions, devices and variables for a bug report."""
    from attnkit.boot.redact import Redactor
    from attnkit.boot.versions import versions
    from attnkit.select.node import inspect_machine

    box = inspect_machine(root)
    clean = Redactor((), os.environ).text
    found = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions(box.match.device),
        "devices": [f"{device.name} ({device.arch})" for device in box.detection.devices],
        "node_type": box.match.node,
        "variables": {k: clean(v) for k, v in sorted(os.environ.items()) if k.startswith(_STEERING)},
    }
    if json:
        print_json(found)
    else:
        from attnkit.cli import tables

        tables.show_environment(found)
