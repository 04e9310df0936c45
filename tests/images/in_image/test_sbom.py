"""The bill of materials: the same for the same files."""

from __future__ import annotations

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
