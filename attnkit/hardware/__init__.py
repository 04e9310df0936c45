"""Detects this machine's devices, and which of them a process would see: guarded probes, one a vendor.

Needs nothing but the standard library to import. A vendor's library (NVML, amdsmi) is imported inside its probe, only at
the real root and only where a card of that vendor is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from attnkit.errors import UsageError
from attnkit.hardware import amd, cpu, host, intel, nvidia_child, other, tpu, visible
from attnkit.hardware.device import Detection, Device, ProbeResult
from attnkit.hardware.pci import PciDevice, read_pci
from attnkit.hardware.tree import Tree

__all__ = ["Detection", "Device", "ProbeResult", "detect", "probes"]

_PROBES: dict[str, Callable[[Tree, tuple[PciDevice, ...]], ProbeResult]] = {
    "nvidia": nvidia_child.probe,
    "amd": amd.probe,
    "intel": intel.probe,
    "tpu": tpu.probe,
    "other": other.probe,
    "cpu": lambda tree, _pci: cpu.probe(tree),
}

probes: tuple[str, ...] = tuple(_PROBES)
"""The names of the probes, in the order in which they run and in which their devices are listed."""


def detect(root: str | Path = "/", environment: Mapping[str, str] | None = None) -> Detection:
    """Find every accelerator and the CPU below `root`.

    Args:
        root: "/" for this machine, or a folder with another machine's sys, proc (and etc, dev).
        environment: where the visible-device variables (CUDA_VISIBLE_DEVICES …) are read; None: this process's own.

    Returns:
        Devices in the order of the vendors, the CPU last; each probe's error and notes; facts about the host. A probe that
        fails gives a ProbeResult with its error, and the others still run. `Device.usable` is False for an accelerator that
        is there and cannot be used (`Device.problem` says why), `Device.visible` for one that a variable hides.

    Raises:
        UsageError: `root` is missing, is not a folder, or has neither sys nor proc.
    """
    path = Path(root)
    _check_root(path)
    shared = Tree(path)
    pci: tuple[PciDevice, ...] = ()
    pci_error: str | None = None
    try:
        pci = read_pci(shared)
    except Exception as exc:  # a probe's failure is a value in the report, whatever it is
        pci_error = f"reading PCI failed: {type(exc).__name__}: {exc}"
    results = [ProbeResult("pci", error=pci_error, notes=tuple(shared.problems))] if pci_error or shared.problems else []
    results += [_guarded(name, path, pci) for name in probes]
    try:
        facts = host.facts(Tree(path))
    except Exception as exc:  # likewise
        facts = {"error": f"{type(exc).__name__}: {exc}"}
    found = [device for result in results for device in result.devices]
    seen = visible.apply(found, os.environ if environment is None else environment)
    return Detection(
        seen.devices,
        tuple(results),
        root=str(path),
        host=facts,
        visibility=seen.variables,
        visibility_notes=tuple(seen.notes),
        ambiguous=seen.ambiguous,
    )


def _guarded(name: str, root: Path, pci: tuple[PciDevice, ...]) -> ProbeResult:
    tree = Tree(root)
    try:
        result = _PROBES[name](tree, pci)
    except Exception as exc:  # likewise
        return ProbeResult(name, error=f"{type(exc).__name__}: {exc}", notes=tuple(tree.problems))
    return ProbeResult(name, result.devices, result.error, (*result.notes, *tree.problems))


def _check_root(path: Path) -> None:
    problem = None
    if not path.exists():
        problem = "does not exist"
    elif not path.is_dir():
        problem = "is not a folder"
    elif not (path / "sys").is_dir() and not (path / "proc").is_dir():
        problem = "has neither a sys nor a proc folder"
    if problem:
        raise UsageError(f"root {str(path)!r} {problem}: give / or a folder with another machine's sys and proc")
