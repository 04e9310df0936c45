"""Events: JSON lines for programs, lines of at most 80 columns for people."""

from __future__ import annotations

import io
import json
from datetime import datetime

import pytest

from attnkit.boot.event_lines import event_text
from attnkit.boot.events import Events
from attnkit.errors import describe_exit
from attnkit.hardware.device import Device


def test_json_lines_start_with_event_and_time() -> None:
    stream = io.StringIO()
    events = Events(stream)
    events.emit("detect", device=Device("cpu", "cpu", "CPU", "x86_64"), names=("a", "b"), error=float("nan"))
    line = stream.getvalue()
    assert line.endswith("\n")
    fields = json.loads(line, parse_constant=lambda text: pytest.fail(f"not JSON: {text}"))
    assert list(fields)[:2] == ["event", "time"]
    assert datetime.fromisoformat(fields["time"].replace("Z", "+00:00")).utcoffset() is not None
    assert fields["device"]["arch"] == "x86_64"
    assert fields["names"] == ["a", "b"]
    assert fields["error"] is None


def test_a_planted_fault_is_in_every_event() -> None:
    stream = io.StringIO()
    events = Events(stream)
    events.bind(planted_fault="scale")
    events.emit("boot", attnkit_version="1", host="h")
    events.emit("error", message="m")
    assert [json.loads(line)["planted_fault"] for line in stream.getvalue().splitlines()] == ["scale", "scale"]


def test_a_reader_that_left_does_not_end_the_boot() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    events = Events(Gone())
    events.emit("boot")
    events.emit("error", message="m")


def test_human_form_fits_80_columns() -> None:
    stream = io.StringIO()
    events = Events(stream, event_text)
    events.emit("fallback", **{"from": "FLASH_ATTN", "to": None, "reason": "a long reason " * 20})
    events.emit("error", message="first\nsecond")
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("fallback   FLASH_ATTN → nothing left")
    assert lines[-1].strip() == "second"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("code", "text"), [(0, "exit code 0"), (3, "exit code 3"), (137, "signal SIGKILL"), (255, "exit code 255")]
)
def test_describe_exit(code: int, text: str) -> None:
    assert describe_exit(code) == text
