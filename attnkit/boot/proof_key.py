"""A key of everything that a verdict depends on."""

from __future__ import annotations

import hashlib
from typing import Any

from attnkit.boot.report import BootReport
from attnkit.jsonio import to_json


def proof_key(report: BootReport) -> str:
    """SHA-256 over what the verdict depends on: the same key on the same node means that nothing of it changed."""
    parts = {
        "versions": report.versions,
        "host": report.host.get("kernel", ""),
        "devices": [(d.arch, d.name, d.uuid, d.driver, d.memory_bytes) for d in report.detection.devices if d.usable],
        "need": report.need,
        "backend": (report.backend, report.provider),
        "levels": report.levels,
    }
    return hashlib.sha256(to_json({name: _dumped(part) for name, part in parts.items()}).encode()).hexdigest()


def _dumped(part: Any) -> Any:
    return part.model_dump() if hasattr(part, "model_dump") else part
