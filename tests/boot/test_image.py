"""An image started on a box without its device says so; it does not serve from the CPU that is always there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attnkit.boot.image_guard import CODE_VARIABLE, VARIABLE, require_device
from attnkit.errors import NoBackendError
from attnkit.hardware.device import Detection, Device, ProbeResult

CPU = Device(vendor="cpu", kind="cpu", name="a Xeon", arch="x86_64", source="cpuinfo")
H100 = Device(vendor="nvidia", kind="gpu", name="H100", arch="sm_90", source="nvidia-smi")
BOX = Detection((CPU,), (ProbeResult("nvidia", (), "no driver is loaded"),))


def test_a_boot_of_a_gpu_image_without_a_gpu_ends_with_3(start: Callable[..., Boot]) -> None:  # type: ignore[name-defined] # noqa: F821
    boot = start(env={VARIABLE: "cuda-turing"})
    assert boot.wait() == 3
    assert boot.names()[:3] == ["boot", "detect", "error"]
    message = boot.event("error")["message"]
    assert "no device: this is the cuda-turing image, for rtx-2080-ti, t4, and this machine has no nvidia device" in message
    assert (boot.report["exit_code"], boot.report["error"]) == (3, message)
    assert boot.state() == "failed"


def test_what_is_in_the_box_is_named() -> None:
    with pytest.raises(NoBackendError, match=r"found: a Xeon \(x86_64\); probe nvidia: no driver is loaded"):
        require_device(BOX, {VARIABLE: "cuda-ampere"})


@pytest.mark.parametrize("platform", ["", "cpu", "ipex", "a-new-one"])
def test_the_cpu_serves_where_the_image_is_for_cpus(platform: str) -> None:
    require_device(BOX, {VARIABLE: platform})


def test_the_device_is_enough() -> None:
    require_device(Detection((H100, CPU), ()), {VARIABLE: "cuda-ampere"})
    require_device(BOX, {})


@pytest.mark.parametrize("held", ["sm_90", "sm_75,sm_90", ""])
def test_code_for_the_device_is_enough(held: str) -> None:
    require_device(Detection((H100, CPU), ()), {VARIABLE: "cuda-ampere", CODE_VARIABLE: held})


@pytest.mark.parametrize("held", ["sm_80,sm_86", "sm_100", "sm_120"])
def test_an_image_for_another_architecture_says_so(held: str) -> None:
    with pytest.raises(NoBackendError, match=rf"holds GPU code for {held.replace(',', ', ')} alone, .* has H100 \(sm_90\)"):
        require_device(Detection((H100, CPU), ()), {VARIABLE: "cuda-ampere", CODE_VARIABLE: held})
