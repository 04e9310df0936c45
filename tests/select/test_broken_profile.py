"""A mistake in the profile of one node type stops neither `detect` nor a node type that was given."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnkit.errors import UsageError
from attnkit.select.node import find_node, inspect_machine

TREES = Path(__file__).resolve().parents[1] / "data" / "trees"


@pytest.mark.parametrize("file", ["nodes/other.yaml", "families.yaml"])
@pytest.mark.parametrize(
    "text", ["name: other\nnonsense: 1\n", "a: &a [*a]\n", "[" * 9999, "\x00"], ids=["field", "alias", "depth", "zero"]
)
def test_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    monkeypatch.setenv("ATTNKIT_PROFILES", str(tmp_path))
    machine = inspect_machine(TREES / "a100")
    assert machine.match.node == "a100"
    (problem,) = [probe.error for probe in machine.detection.probes if probe.probe == "profiles"]
    assert problem is not None and str(path) in problem
    assert find_node(root=TREES / "a100", node="a100").profile is not None
    with pytest.raises(UsageError, match=path.name):  # it may be this machine's: nothing is chosen silently
        find_node(root=TREES / "a100")
