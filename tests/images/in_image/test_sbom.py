"""The bill of materials: the same for the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from images.in_image import sbom


@pytest.mark.parametrize("order", [1, -1])
def test_a_bill_of_materials_keeps_nothing_of_its_run(order: int) -> None:
    parts = [{"purl": "pkg:deb/b", "bom-ref": "b"}, {"purl": "pkg:deb/a", "bom-ref": "a"}][::order]
    subject = {"name": "attnkit-cpu", "type": "file", "bom-ref": f"of a temporary path {order}"}
    metadata = {"timestamp": "now", "tools": 1, "component": subject}
    settled = sbom.settled({"serialNumber": "x", "metadata": metadata, "components": parts, "dependencies": []})
    assert settled["metadata"] == {"tools": 1, "component": {**subject, "bom-ref": "attnkit-cpu"}}
    assert "serialNumber" not in settled
    assert [part["bom-ref"] for part in settled["components"]] == ["a", "b"]


def test_removed_gpu_code_is_listed(tmp_path: Path) -> None:
    assert sbom.removed(tmp_path) == []
    path = tmp_path / sbom.REMOVED
    path.parent.mkdir(parents=True)
    libraries = {"lib/b.so": {"removed": {"sm_80": 12, "sm_100": 5}}, "bin/ptxas-blackwell": {"bytes": 0}}
    path.write_text(json.dumps({"architectures": ["sm_90"], "libraries": libraries}), encoding="utf-8")
    assert [tuple(found.values()) for found in sbom.removed(tmp_path)] == [
        ("attnkit:gpu-code:kept", "sm_90"),
        ("attnkit:gpu-code:removed:bin/ptxas-blackwell", "the file"),
        ("attnkit:gpu-code:removed:lib/b.so", "sm_80 12, sm_100 5"),
    ]
