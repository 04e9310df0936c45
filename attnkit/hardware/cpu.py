"""The host processor, from /proc/cpuinfo and /proc/meminfo."""

from __future__ import annotations

import os

from attnkit.hardware.device import Device, ProbeResult
from attnkit.hardware.tree import Tree, parse_int

# What attention code asks for, spelled as the kernel spells it; anything else in the flags is left out.
FEATURES = (
    *("sse4_2", "avx", "f16c", "fma", "avx2"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "svebf16", "sve2", "sme"),
)

# Arm gives numbers instead of a model name: implementer 0x41 (Arm) and the part's number.
_ARM_PARTS = {
    "0xd0c": "Arm Neoverse-N1",
    "0xd40": "Arm Neoverse-V1",
    "0xd49": "Arm Neoverse-N2",
    "0xd4f": "Arm Neoverse-V2",
}


def probe(tree: Tree) -> ProbeResult:
    """The CPU as one device; features are those that every listed processor has."""
    notes: list[str] = []
    processors = _processors(tree.text("proc/cpuinfo") or "")
    if not processors:
        return ProbeResult("cpu", error="proc/cpuinfo is missing, empty or lists no processor")
    arch = machine(tree, processors)
    flags = [set((p.get("flags") or p.get("Features") or "").split()) for p in processors]
    common = set.intersection(*flags)
    if not common:
        notes.append("proc/cpuinfo shows no feature flags that all processors share: truncated, or an unknown processor family")
    cores = {(p.get("physical id"), p["core id"]) for p in processors if p.get("core id")}
    whole = all(p.get("core id") for p in processors)
    device = Device(
        vendor="cpu",
        kind="cpu",
        name=_name(processors[0], arch),
        arch=arch,
        memory_bytes=_memory(tree, notes),
        units=len(cores) if whole else len(processors),
        features=tuple(name for name in FEATURES if name in common),
        source="cpuinfo",
    )
    return ProbeResult("cpu", (device,), notes=tuple(notes))


def machine(tree: Tree, processors: list[dict[str, str]] | None = None) -> str:
    """x86_64, aarch64 … of the tree's host: the kernel's word where it has one, else read off the form of cpuinfo."""
    said = tree.text("proc/sys/kernel/arch") or (os.uname().machine if tree.live else None)
    if said:
        return said
    listed = _processors(tree.text("proc/cpuinfo") or "") if processors is None else processors
    first = listed[0] if listed else {}
    if "lm" in first.get("flags", "").split():  # "long mode": a 64-bit x86
        return "x86_64"
    return "aarch64" if "asimd" in first.get("Features", "").split() else "unknown"


def _processors(text: str) -> list[dict[str, str]]:
    """One dictionary a logical processor; blocks are divided by blank lines, keys and values by a colon."""
    blocks = []
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        entry = {key.strip(): value.strip() for key, colon, value in pairs if colon}
        if parse_int(entry.get("processor")) is not None:
            blocks.append(entry)
    return blocks


def _name(first: dict[str, str], arch: str) -> str:
    if first.get("model name"):
        return first["model name"]
    part = first.get("CPU part", "")
    if first.get("CPU implementer") == "0x41" and part in _ARM_PARTS:
        return _ARM_PARTS[part]
    return f"{arch} processor" + (f" (implementer {first.get('CPU implementer', '?')}, part {part})" if part else "")


def _memory(tree: Tree, notes: list[str]) -> int | None:
    value = tree.fields("proc/meminfo", ":").get("MemTotal", "")
    number = parse_int(value or None)
    if number is None:
        notes.append("proc/meminfo has no MemTotal: memory size is not known")
        return None
    return number * 1024  # the kernel prints kB and means KiB
