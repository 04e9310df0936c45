"""The script for a machine with two devices, on a made machine: its steps really boot, and a surprise shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.hardware import two_devices


def test_steps_come_out_as_expected_and_reports_hold_no_path_of_this_machine(tmp_path: Path) -> None:
    wanted = "memory-of-second-taken,second-left-out"
    assert two_devices.main(["--out", str(tmp_path), "--simulate", "--only", wanted]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [step["name"] for step in summary["steps"]] == wanted.split(",")
    taken, left_out = (json.loads((tmp_path / f"{name}.json").read_text()) for name in wanted.split(","))
    assert "134.4 of 192.0 GiB of its memory are in use by others" in taken["devices"][1]["findings"][0]
    assert taken["devices"][0]["findings"] == []
    assert taken["devices"][1]["health"]["recorded"] is True
    assert left_out["engine"]["env"] == {"HIP_VISIBLE_DEVICES": "0"}
    for file in tmp_path.glob("*.json"):
        assert str(tmp_path) not in file.read_text()


def test_a_step_that_is_not_as_expected_shows(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--simulate", "--only", "two-devices", "--", "--node", "cpu"]
    assert two_devices.main(arguments) == 1
    (step,) = json.loads((tmp_path / "summary.json").read_text())["steps"]
    assert step["said"].startswith("verdicts ['planted']")


def test_an_unknown_step_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        two_devices.main(["--out", str(tmp_path), "--simulate", "--only", "three-devices"])
    assert "Known: one-device, two-devices" in capsys.readouterr().err
