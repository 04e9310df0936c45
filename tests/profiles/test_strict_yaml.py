"""The strict reader of YAML: nothing takes unbounded time or memory, and every refusal names file, line and reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attnkit.errors import UsageError
from attnkit.profiles.schema import WorkloadProfile
from attnkit.profiles.strict_yaml import read_model

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: " + "9" * 6000, ":1: 9+… has more than 64 bits|is no int"),
        ("name: " + "[" * 100_000, "nest"),
        ("name: " + "{b: " * 500, ":1: nested deeper than 32 levels"),
        (BOMB, "aliases come to more than"),
        ("name: &x [*x]", "aliases come to more than"),
        ("name: 1\nname: 2", ":2: field 'name' is given twice; first in line 1"),
        ("? {a: b}\n: c", ":1: a field's name must be text"),
        ("name: !!python/object/apply:os.system [ls]", ":1: python/object/apply:os.system is not read"),
        ("name: !!int abc", ":1: 'abc' is no int"),
        ("name: !!bool maybe", ":1: 'maybe' is no bool"),
        ("name: 2026-13-45", ":1: timestamp is not read; quote the value"),
        ("name: !!binary x", ":1: binary is not read"),
        ("name: !<foo> b", ":1: foo is not read"),
        ("a: b\n--- \nc: d", "not YAML: but found another document"),
        ("<<: 3", ":1: "),
        ("a\x00b: 1", "not YAML"),
        ("- a", "is not a mapping"),
    ],
    ids=lambda value: value[:14],
)
def test_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "text.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        read_model(path, WorkloadProfile, context={"file": "text"})
    assert str(caught.value).startswith(str(path))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "text.yaml")
    with pytest.raises(UsageError, match="is not a regular file"):
        read_model(tmp_path / "text.yaml", WorkloadProfile)


def test_an_ordinary_alias_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text("name: w\ntitle: t\nengine: &e {args: [--a]}\n")
    assert read_model(path, WorkloadProfile, context={"file": "w"}).engine.args == ["--a"]
