"""Several devices at once: a process for each, and what becomes of one leaves the others' verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attnkit.errors import UsageError
from attnkit.hardware.device import Device
from attnkit.isolation.compare import compare_devices
from attnkit.isolation.injected import Injected, check_devices, parse_fault
from attnkit.isolation.messages import Request
from attnkit.isolation.parent import DeviceTask, Kernels, run_isolated, run_on_devices
from attnkit.selftest.results import CaseResult, Speed, Verdict
from attnkit.spec import AttentionSpec

SMALL = AttentionSpec(dtype="float32", num_heads=1, num_kv_heads=1, head_dim=16, block_size=16)
PLENTY = 300.0


def cpu(index: int) -> Device:
    return Device("cpu", "cpu", "CPU", "x86_64", index=index, uuid=f"CPU-{index}", pci_address=f"0000:0{index}:00.0")


def test_each_device_has_a_verdict_of_its_own_whatever_becomes_of_the_others() -> None:
    request = Request("TORCH_SDPA", None, cpu(0), (SMALL,), "quick")
    faults = {0: None, 1: "scale", 2: "crash", 3: "hang"}
    tasks = [
        DeviceTask(replace(request, device=cpu(index), fault=fault), 1.0 if fault == "hang" else PLENTY)
        for index, fault in faults.items()
    ]
    cases: list[tuple[int, CaseResult]] = []
    kernels: list[Kernels] = []
    found = run_on_devices(tasks, on_case=lambda position, case: cases.append((position, case)), on_kernels=kernels.append)
    (right,), (wrong,), (crashed,), (hung,) = found
    assert [v.outcome for v in (right, wrong, crashed, hung)] == ["pass", "fail", "fail", "inconclusive"]
    assert crashed.cases[-1].reason == "the self-test process crashed with SIGSEGV (before its first case)"
    assert hung.cases[-1].reason.startswith("did not finish within 1 s")
    assert len([case for position, case in cases if position == 0]) == len(right.cases) > 1
    assert len(kernels) == 2, "those of the two that ended"
    for index, verdict in enumerate((right, wrong, crashed, hung)):
        assert (verdict.device_index, verdict.device_uuid) == (index, f"CPU-{index}")
        assert verdict.device.endswith(f"device {index} (CPU-{index}, 0000:0{index}:00.0)")


def test_a_child_sees_the_variables_of_its_device(tmp_path: Path) -> None:
    # A module of this name in the path is imported first of all, and says in whose process.
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nwith open(os.environ['SEEN'], 'a') as f: f.write(os.environ['ZE_AFFINITY_MASK'])\nos._exit(0)\n"
    )
    request = Request("TORCH_SDPA", None, cpu(0), (SMALL,), "quick")
    shared = {"PYTHONPATH": str(tmp_path), "SEEN": str(tmp_path / "seen")}
    found = run_on_devices([DeviceTask(request, PLENTY, {**shared, "ZE_AFFINITY_MASK": mask}) for mask in "01"])
    assert sorted((tmp_path / "seen").read_text()) == ["0", "1"]
    assert {verdict.cases[-1].reason.split(" (")[0] for (verdict,) in found} == {
        "the self-test process ended without a verdict"
    }


def test_a_wrong_request_is_raised_and_no_child_stays() -> None:
    request = Request("TORCH_SDPA", None, cpu(0), (SMALL,), "quick", fault="hang")
    wrong = replace(request, fault="no-such-fault")
    with pytest.raises(UsageError, match="no-such-fault"):
        run_on_devices([DeviceTask(request, PLENTY), DeviceTask(wrong, PLENTY)])
    with pytest.raises(UsageError, match="no-such-fault"):
        run_isolated(wrong, timeout=PLENTY)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("scale", Injected("scale")),
        ("scale@1", Injected("scale", (1,))),
        ("crash@0,2", Injected("crash", (0, 2))),
        ("wrong-rank@1", Injected("wrong-rank", (1,))),
    ],
)
def test_a_fault_names_its_devices(text: str, fault: Injected) -> None:
    assert parse_fault(text) == fault
    affected = [index for index in range(3) if fault.on(cpu(index))]
    assert affected == list(fault.devices or (0, 1, 2))
    assert fault.in_selftest(cpu(affected[0])) == (None if fault.name == "wrong-rank" else fault.name)


@pytest.mark.parametrize("text", ["scale@", "scale@one", "scale@1,", "scale@-1", "hangs@1", "@1"])
def test_a_fault_or_device_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_fault(text)


def test_a_fault_on_a_device_that_is_not_there_is_refused() -> None:
    check_devices((), [])
    check_devices((0, 2), [cpu(0), cpu(2)])
    with pytest.raises(UsageError, match="there is no device 1 to serve from; the indices are 0, 2"):
        check_devices((0, 1), [cpu(0), cpu(2)])


def test_a_device_much_slower_than_its_equals_fails() -> None:
    devices = [replace(cpu(index), memory_bytes=100 if index < 3 else 50) for index in range(4)]
    verdicts = [
        (Verdict("B", "p", "d", "standard", "pass", (), speed=(Speed("decode", "pass", ceiling=rate),)),)
        for rate in (100.0, 49.0, 51.0, 10.0)
    ]
    found = [verdict for (verdict,) in compare_devices(devices, verdicts)]
    assert [verdict.outcome for verdict in found] == ["pass", "fail", "pass", "pass"], "the last one has no equal"
    (case,) = found[1].cases
    assert "device 1 (CPU-1, 0000:01:00.0) shows 49% of the rate of its equal, device 0" in case.reason
