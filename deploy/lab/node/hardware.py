"""PID 1 of a lab node: device nodes after the recorded tree in /recorded, then what every node runs.

The device nodes are null devices: they can be opened and handed to a container, and nothing is behind them. Standard library
only.
"""

from __future__ import annotations

import os
import runpy
import shutil
import stat
import sys
from pathlib import Path

RECORDED = Path("/recorded")
RENDER_GROUP = 992
"""As the render group is numbered on some machine: not as in any image."""
VIDEO_GROUP = 44
NVIDIA_HOOK = Path("/usr/bin/nvidia-container-runtime-hook")
"""Where the container engine looks for NVIDIA's toolkit."""
NULL = os.makedev(1, 3)


def group_of(path: Path) -> int:
    """The group that a machine gives this device node."""
    if path.name == "kfd" or path.name.startswith("renderD"):
        return RENDER_GROUP
    return VIDEO_GROUP if path.parent.name == "dri" else 0


def make_devices() -> list[Path]:
    """A null device for every file below the tree's dev."""
    made = []
    for source in sorted(p for p in (RECORDED / "dev").rglob("*") if p.is_file()):
        path = Path("/dev") / source.relative_to(RECORDED / "dev")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not stat.S_ISCHR(path.stat().st_mode):
            path.unlink()
        if not path.exists():
            os.mknod(path, 0o660 | stat.S_IFCHR, NULL)
        os.chown(path, 0, group_of(path))
        path.chmod(0o660 if group_of(path) else 0o666)
        made.append(path)
    return made


def main() -> None:
    """Prepare, then become a node."""
    if any(path.name.startswith("nvidia") for path in make_devices()):
        shutil.copy("/usr/local/share/attnkit-lab/nvidia_hook.py", NVIDIA_HOOK)
        NVIDIA_HOOK.chmod(0o755)
    sys.argv = ["node.py"]
    runpy.run_path("/usr/local/bin/node.py", run_name="__main__")


if __name__ == "__main__":
    main()
