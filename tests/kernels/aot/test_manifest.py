"""The manifest of a kernel directory: read by schema, and the directory held against it, missing and added files alike."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from attnkit.errors import UsageError
from attnkit.kernels.aot.files import facts
from attnkit.kernels.aot.manifest import KernelsError, load
from attnkit.kernels.aot.verify import verify


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A small kernel directory; its machine code is none, which only a launch would notice."""
    (tmp_path / "KEY").mkdir()
    for name in ("k.cubin", "k.json"):
        (tmp_path / "KEY" / name).write_text(name)
    (tmp_path / "LAUNCH").mkdir()
    (tmp_path / "LAUNCH" / "cuda.so").write_text("so")
    files = {name: facts(tmp_path / "KEY" / name) for name in ("k.cubin", "k.json")}
    kernel = {"target": "sm_90", "name": "k-1", "kernel": "k", "key": "KEY", "binary": "k.cubin", "files": files}
    document = {
        "triton": "3.6.0", "targets": ["sm_90"], "geometries": [], "kernels": [kernel],
        "launchers": {"LAUNCH/cuda.so": facts(tmp_path / "LAUNCH" / "cuda.so")}, "level": "", "schema": 2,
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    return tmp_path


def test_a_whole_directory(directory: Path) -> None:
    assert verify(directory, planned=False).counts() == {"sm_90": 1}


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda root: (root / "KEY" / "k.json").unlink(), "k.json is missing"),
        (lambda root: (root / "KEY" / "k.cubin").write_text("other"), "k.cubin was altered"),
        (lambda root: (root / "KEY" / "more.cubin").write_text("x"), "KEY/more.cubin was added"),
        (lambda root: (root / "OTHER").mkdir(), "OTHER was added"),
        (lambda root: (root / "LAUNCH" / "x.so").write_text("x"), "LAUNCH/x.so was added"),
    ],
)
def test_what_is_missing_altered_or_added_is_noticed(directory: Path, harm: Any, says: str) -> None:
    harm(directory)
    with pytest.raises(KernelsError, match=says):
        verify(directory, planned=False)


ODD = (None, 3, -1, "x", [], {}, [1], {"a": 1}, "../../etc", "/etc", True, 1e300, "n" * 300, [["a", "b"]])


def test_a_mutated_manifest_is_read_or_refused(directory: Path) -> None:
    """Every field replaced by something else, a thousand times: a UsageError with the file, or a document that fits."""
    path = directory / "manifest.json"
    whole = json.loads(path.read_text())
    draw = random.Random(1)
    refused = 0
    for _ in range(1000):
        document = copy.deepcopy(whole)
        node: Any = document
        while isinstance(node, dict | list) and node:
            key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
            if draw.random() < 0.4 or not isinstance(node[key], dict | list):
                node[key] = draw.choice(ODD)
                break
            node = node[key]
        path.write_text(json.dumps(document))
        try:
            verify(directory, planned=False)
        except UsageError as error:
            assert str(path) in str(error)
            refused += 1
        except KernelsError:
            refused += 1
    assert refused > 700


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"schema": 2}', '{"schema": 9}', '{"schema": 2, "schema": 2}', pytest.param("[" * 9999, id="deep"), ""],
)
def test_a_file_that_is_no_manifest(directory: Path, text: str) -> None:
    (directory / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match=r"manifest\.json"):
        load(directory)
