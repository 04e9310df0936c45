"""The strict reader of JSON: what others wrote is read as it stands, or refused with the place and the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attnkit.errors import UsageError
from attnkit.jsonio import MAX_DEPTH, parse_json, read_json, read_text, write_atomically


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "key 'a' is given twice"),
        ("[" * 100_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("[" * 500 + "]" * 500, f"nested deeper than {MAX_DEPTH} levels"),
        ('{"a": ' * 70 + "1" + "}" * 70, f"nested deeper than {MAX_DEPTH} levels"),
        ("1" + "0" * 6000, "has more than 64 bits"),
        (str(2**63), "has more than 64 bits"),
        ("[1e999]", "number 1e999 is too large"),
        ("[NaN]", "NaN is no JSON number"),
        ("[-Infinity]", "-Infinity is no JSON number"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('{"\\udfff": 1}', "half of a surrogate pair"),
        ("{\n oops", "x:2: not JSON: .*column 2"),
        ("", "x:1: not JSON"),
        (b"\xff\xfe\xfa", "x: "),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else None,
)
def test_refused(text: str | bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_json(text, "x")
    assert len(str(caught.value)) < 300


def test_taken_as_it_stands() -> None:
    assert parse_json('{"a": [1, -2.5e3, true, null, "é\\n😀"], "b": 9223372036854775807}', "x") == {
        "a": [1, -2500.0, True, None, "é\n😀"],
        "b": 2**63 - 1,
    }


def test_only_regular_files_of_a_known_size_are_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # nobody writes: an open would wait for ever
    large = tmp_path / "large"
    large.write_text(" " * 2000)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for path, says in (
        (pipe, "is not a regular file"),
        (Path("/dev/zero"), "is not a regular file"),
        (tmp_path, "is a directory"),
        (tmp_path / ("n" * 300), "File name too long"),
        (tmp_path / "zero\0byte", "null byte"),
        (tmp_path / "absent", "No such file"),
        (tmp_path / "latin", r"not UTF-8 text \(byte 3\)"),
    ):
        with pytest.raises(UsageError, match=says):
            read_json(path)
    with pytest.raises(UsageError, match="more than 1000 bytes"):
        read_text(large, limit=1000)


@pytest.mark.parametrize("name", ["zero\0byte", "n" * 300])
def test_a_name_that_no_file_has_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        write_atomically(tmp_path / name, "text")
