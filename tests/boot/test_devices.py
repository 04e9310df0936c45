"""A boot of several devices: a bad one is named, fails the node or is left out, and the others keep their verdicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from attnkit.boot.report import json_schema
from attnkit.hardware.device import Device
from tests.hardware.conftest import Machine

Start = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ("0000:17:00.0", "0000:65:00.0", "0000:ca:00.0")


@pytest.fixture
def three_h200(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    machine = Machine(tmp_path / "machine", monkeypatch)
    for index, address in enumerate(ADDRESSES):
        machine.nvidia(address, "10de:2335", f"GPU-{index}", minor=index)
    return machine.root


def test_a_crash_of_one_device_fails_the_node_and_leaves_the_others_verdicts(
    start: Start, three_h200: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "engine-ran"
    boot = start("--simulated-device", "crash@1", "--root", three_h200, "--", "touch", str(mark))
    assert boot.wait() == 1
    report = boot.report
    jsonschema.Draft202012Validator(json_schema()).validate(report)
    assert [row["verdict"] for row in report["devices"]] == ["planted", "fail", "planted"]
    assert [v["outcome"] for v in report["selftest"]] == ["skipped", "fail", "skipped"]
    assert [v["pci_address"] for v in report["selftest"]] == list(ADDRESSES)
    assert "device 1 (GPU-1, 0000:65:00.0): fail: process: the self-test process crashed with SIGSEGV" in report["error"]
    assert "the others passed" in report["error"]
    (step,) = report["fallbacks"]
    assert step["to"] is None, "another backend on a bad device would hide it"
    assert (report["backend"], report["verdict"], report["exit_code"]) == (None, "fail", 1)
    assert not mark.exists()


def test_a_bad_device_is_left_out_where_the_profile_says_so(start: Start, three_h200: Path, tmp_path: Path) -> None:
    profiles = tmp_path / "profiles"
    (profiles / "nodes").mkdir(parents=True)
    shipped = (ROOT / "profiles" / "nodes" / "h200.yaml").read_text()
    (profiles / "nodes" / "h200.yaml").write_text(f"{shipped}on_bad_device: leave_out\n")
    boot = start(
        *("--simulated-device", "wrong@1", "--root", three_h200, "--"),
        *("sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES" > seen'),
        env={"ATTNKIT_PROFILES": str(profiles)},
    )
    assert boot.wait() == 0
    report = boot.report
    assert (tmp_path / "seen").read_text() == "0,2\n"
    assert [row["left_out"] for row in report["devices"]] == [False, True, False]
    assert (report["verdict"], report["fallbacks"]) == ("planted", [])
    left_out = boot.event("device.left_out")
    assert (left_out["device_index"], left_out["uuid"], left_out["pci_address"]) == (1, "GPU-1", ADDRESSES[1])
    assert "planted" in left_out["reason"]
    assert report["engine"]["env"]["CUDA_VISIBLE_DEVICES"] == "0,2"
    assert "CUDA_VISIBLE_DEVICES=0,2" in " ".join(report["engine"]["notes"])


def test_devices_that_serve_one_model_together_are_checked_before_the_engine_starts(start: Start, three_h200: Path) -> None:
    boot = start(
        *("--simulated-device", "right", "--fault", "wrong-rank@1", "--root", three_h200, "--model", "llama-3"),
        *("--", "vllm", "serve", "model", "--tensor-parallel-size", "2"),
    )
    assert boot.wait() == 1
    report = boot.report
    assert [(spec["num_heads"], spec["num_kv_heads"]) for spec in report["need"]["specs"]] == [(16, 4)], "one rank's"
    collective = report["collective"]
    assert (collective["outcome"], collective["simulated"], len(collective["ranks"])) == ("fail", True, 2)
    assert report["error"].startswith("the devices do not work together (gloo): all-gather-int32: wrong data from rank 1")
    assert "GPU-1, 0000:65:00.0" in report["error"]
    assert (report["backend"], report["engine"]) == (None, None)
    assert boot.state() == "failed"


def test_only_the_devices_of_the_node_type_are_tested_and_shown_to_the_engine(machine: Machine) -> None:
    from attnkit.select.node import find_node

    for index, pci_id in enumerate(("10de:1eb8", "10de:2330", "10de:2330", "10de:2335")):  # T4, 2 × H100, H200
        machine.nvidia(f"0000:{index + 1:02x}:00.0", pci_id, f"GPU-{index}", minor=index)

    def indices(devices: tuple[Device, ...]) -> list[int]:
        return [device.index for device in devices]

    assert indices(find_node(root=machine.root, node="h100").devices) == [1, 2]
    assert indices(find_node(root=machine.root, node="h200").devices) == [3]
    assert [device.kind for device in find_node(root=machine.root, node="cpu").devices] == ["cpu"]
    machine.monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2,GPU-1")
    assert indices(find_node(root=machine.root).devices) == [2, 1], "as the process numbers them"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)
