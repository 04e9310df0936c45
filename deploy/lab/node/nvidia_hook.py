#!/usr/bin/python3
"""A stand-in for NVIDIA's container hook: a container that asked for GPUs gets the node's NVIDIA device nodes, nothing else.

Called by runc before the container's root is entered, with the container's state on stdin. Standard library only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Make the device nodes in the container's /dev, inside its mount namespace."""
    state = json.load(sys.stdin)
    config = json.loads((Path(state["bundle"]) / "config.json").read_text(encoding="utf-8"))
    root = Path(config["root"]["path"])
    for device in sorted(Path("/dev").glob("nvidia*")):
        command = ["nsenter", "--target", str(state["pid"]), "--mount", "--", "mknod", "-m", "666"]
        subprocess.run([*command, str(root / "dev" / device.name), "c", "1", "3"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
