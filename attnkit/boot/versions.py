"""Versions of what a verdict depends on, for the report and `attnkit env`; nothing is imported for it."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from attnkit import __version__
from attnkit.backends.installed import installed_versions
from attnkit.engines.vllm.command import engine_version
from attnkit.hardware.device import Device

_RUNTIMES = re.compile(r"^(cuda|hip|xpu)\b[^=\n]*=\s*['\"]([\w.+-]+)['\"]", re.MULTILINE)
_BESIDE = ("transformers", "numpy", "triton")
"""Libraries that no backend asks for by name everywhere, and that decide all the same."""


def versions(device: Device | None) -> dict[str, str]:
    """Name → version, as found here; what is absent is left out. `device` gives the driver."""
    found = {name: version for name, version in installed_versions().items() if version is not None}
    engine = engine_version()
    return {
        "attnkit": __version__,
        "python": platform.python_version(),
        **{name: version for name in _BESIDE if (version := _distribution(name)) is not None},
        **found,
        **_runtimes(),
        **({"vllm": engine} if engine else {}),
        **({"driver": device.driver} if device is not None and device.driver else {}),
    }


def _distribution(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _runtimes() -> dict[str, str]:
    """The CUDA, HIP or XPU that torch was built for, from its version file."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return {}
    return {f"torch's {name}": version for name, version in _RUNTIMES.findall(text)}
