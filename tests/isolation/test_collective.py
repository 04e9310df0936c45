"""Ranks that exchange data, for real: gloo on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attnkit.hardware.device import Device
from attnkit.hardware.health import Health
from attnkit.isolation.collective import check_collectives, promised_bandwidth
from attnkit.isolation.injected import parse_fault

H200 = [
    Device("nvidia", "gpu", "NVIDIA H200", "sm_90", index=index, uuid=f"GPU-{index}", pci_address=f"0000:{index + 1:02x}:00.0")
    for index in (0, 2)
]


def test_two_ranks_have_the_bits_of_one_device() -> None:
    cpu = Device("cpu", "cpu", "CPU", "x86_64")
    found = check_collectives([cpu, cpu], fault=parse_fault("scale"))
    assert (found.outcome, found.backend, found.reason, found.simulated, found.fault) == ("pass", "gloo", "", False, None)
    assert [check.check for check in found.checks] == [
        "all-gather-int32",
        *(f"all-reduce-{dtype}" for dtype in ("int32", "float32", "float16", "bfloat16")),
        "all-reduce-random-float32",
    ]
    assert {check.outcome for check in found.checks} == {"pass"}
    assert found.bus_bytes_per_s is not None and found.bus_bytes_per_s > 0
    assert (found.promised_bytes_per_s, found.findings) == (None, ()), "the CPU has no link"


def test_a_rank_that_delivers_anothers_data_is_caught_and_named() -> None:
    found = check_collectives(H200, fault=parse_fault("wrong-rank@2"), simulated=True)
    assert (found.outcome, found.simulated, found.fault) == ("fail", True, "wrong-rank")
    assert {check.outcome for check in found.checks} == {"fail"}
    assert found.checks[0].reason == "wrong data from rank 1: device 2 (GPU-2, 0000:03:00.0)"
    assert found.reason.startswith(f"all-gather-int32: {found.checks[0].reason}")


def test_a_rank_that_never_comes_ends_with_the_time_limit() -> None:
    # Nobody but one of the two can join: the other's Python ends before it starts.
    found = check_collectives(H200, simulated=True, environment={"PYTHONHOME": "/nowhere"})
    assert found.outcome == "inconclusive"
    assert "ended with exit code 1" in found.reason
    slow = check_collectives(H200, simulated=True, timeout=0.1)
    assert slow.outcome == "fail"
    assert "did not finish within 0 s" in slow.reason


def test_torch_drives_no_tpu() -> None:
    found = check_collectives([Device("google", "tpu", "TPU v6e", "tpu-v6e")] * 2)
    assert (found.outcome, found.checks) == ("skipped", ())
    assert "google" in found.reason


NVLINK = Health(links=18, links_max=18, link_mb_per_s=26562, pcie_generation_max=5, pcie_generation=1, pcie_width=16)


@pytest.mark.parametrize(
    ("healths", "gb_per_s"),
    [
        ([NVLINK, NVLINK], 478.1),
        ([NVLINK, replace(NVLINK, links=9)], 239.1),
        ([NVLINK, replace(NVLINK, links=0)], 63.0),
        ([replace(NVLINK, links=0, pcie_width=8), replace(NVLINK, links=0, pcie_generation_max=4)], 31.5),
        ([NVLINK, None], None),
        ([NVLINK, Health()], None),
        ([], None),
    ],
)
def test_what_the_links_promise(healths: list[Health | None], gb_per_s: float | None) -> None:
    found = promised_bandwidth(healths)
    assert found is None if gb_per_s is None else found == pytest.approx(gb_per_s * 1e9, rel=0.01)
