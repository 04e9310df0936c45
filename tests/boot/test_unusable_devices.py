"""A boot where the accelerators cannot serve, or where nothing says which are to: no engine, a reason, an exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Any]


def tree(root: Path, cards: dict[str, tuple[str, str, str]]) -> Path:
    """A machine with these PCI functions: address to id, class and driver ("" for none)."""
    (root / "proc").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: lm avx2 avx512f\n")
    for address, (pci_id, pci_class, driver) in cards.items():
        folder = root / "sys/bus/pci/devices" / address
        folder.mkdir(parents=True)
        vendor, device = pci_id.split(":")
        for name, text in (("vendor", vendor), ("device", device), ("class", pci_class)):
            (folder / name).write_text(f"0x{text}\n")
        (folder / "uevent").write_text(f"DRIVER={driver}\n" if driver else "")
    return root


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (("1da3:1020", "120000", "habanalabs"), "attnkit does not serve from accelerators of this kind"),
        (("10de:2684", "030000", "vfio-pci"), "bound to 'vfio-pci'"),
        (("1002:74a1", "120000", ""), "driver not loaded"),
    ],
)
def test_an_accelerator_that_cannot_serve_ends_the_boot_with_3(
    start: Start, tmp_path: Path, card: tuple[str, str, str], words: str
) -> None:
    boot = start("--root", tree(tmp_path / "machine", {"0000:33:00.0": card}))
    assert boot.wait() == 3
    message = boot.event("error")["message"]
    assert words in message and "0000:33:00.0" in message
    assert (boot.report["exit_code"], boot.report["error"], boot.report["node_type"]) == (3, message, None)
    assert boot.report["detection"]["devices"][0]["problem"]
    assert boot.state() == "failed"


def test_unlike_devices_end_the_boot_with_2(start: Start, tmp_path: Path) -> None:
    cards = {"0000:17:00.0": ("10de:1eb8", "030200", "nvidia"), "0000:65:00.0": ("10de:2330", "030200", "nvidia")}
    boot = start("--root", tree(tmp_path / "machine", cards))
    assert boot.wait() == 2
    message = boot.event("error")["message"]
    assert "different devices are here" in message
    assert boot.state() == "failed"
    report = boot.report
    assert (report["error"], report["exit_code"], report["node_type"], report["verdict"]) == (message, 2, None, "skipped")
    assert [device["pci_address"] for device in report["detection"]["devices"]][:2] == list(cards)
