"""The host processor, from /proc/cpuinfo and /proc/meminfo."""

from __future__ import annotations

import os
import re
from dataclasses import replace

from attnkit.hardware.device import Device, ProbeResult
from attnkit.hardware.tree import Tree, parse_int

# What attention code asks for, spelled as the kernel spells it; anything else in the flags is left out.
FEATURES = (
    *("sse4_2", "avx", "f16c", "fma", "avx2"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "svebf16", "sve2", "sme"),
    *("vx", "vxe", "vxe2", "nnpa"),
)

# Arm gives numbers instead of a model name: implementer 0x41 (Arm) and the part's number.
_ARM_PARTS = {
    "0xd0c": "Arm Neoverse-N1",
    "0xd40": "Arm Neoverse-V1",
    "0xd49": "Arm Neoverse-N2",
    "0xd4f": "Arm Neoverse-V2",
    "0xd84": "Arm Neoverse-V3",
    "0xd8e": "Arm Neoverse-N3",
}
# Amazon's own processors are Arm's cores; only the firmware's tables say whose machine it is.
_GRAVITONS = {"0xd0c": "AWS Graviton2", "0xd40": "AWS Graviton3", "0xd4f": "AWS Graviton4", "0xd84": "AWS Graviton5"}
_IBM_Z = {
    **{"2964": "z13", "2965": "z13s", "3906": "z14", "3907": "z14 ZR1", "8561": "z15", "8562": "z15 T02"},
    **{"3931": "z16", "3932": "z16 A02", "9175": "z17", "9176": "z17 ME1"},
}


def probe(tree: Tree) -> ProbeResult:
    """The CPU as one device; features are those that every listed processor has."""
    notes: list[str] = []
    processors = _processors(tree.text("proc/cpuinfo") or "")
    if not processors:
        numbers = re.findall(r"\d+", tree.text("sys/devices/system/cpu/present") or "")
        arch = machine(tree, processors)
        if not numbers or arch == "unknown":
            return ProbeResult("cpu", error="proc/cpuinfo is missing, empty or lists no processor")
        notes.append("proc/cpuinfo lists no processor in a form that is known: the processor's features are not known")
        device = Device("cpu", "cpu", f"{arch} processor", arch, memory_bytes=_memory(tree, notes), units=int(numbers[-1]) + 1)
        return ProbeResult("cpu", (replace(device, source="sysfs"),), notes=tuple(notes))
    arch = machine(tree, processors)
    flags = [set(_flags(processor).split()) for processor in processors]
    common = set.intersection(*flags)
    if not common and not arch.startswith(("ppc64", "riscv")):  # whose cpuinfo has no flags
        notes.append("proc/cpuinfo shows no feature flags that all processors share: truncated, or an unknown processor family")
    cores = {(p.get("physical id"), p["core id"]) for p in processors if p.get("core id")}
    whole = all(p.get("core id") for p in processors)
    device = Device(
        vendor="cpu",
        kind="cpu",
        name=_name(tree, processors[0], arch),
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
    if first.get("vendor_id") == "IBM/S390":
        return "s390x"
    if first.get("isa", "").startswith("rv64"):
        return "riscv64"
    if first.get("cpu", "").startswith("POWER"):
        return "ppc64le"
    if "loongson" in first.get("Model Name", "").casefold():
        return "loongarch64"
    return "aarch64" if "asimd" in first.get("Features", "").split() else "unknown"


def _flags(processor: dict[str, str]) -> str:
    return processor.get("flags") or processor.get("Features") or processor.get("features") or ""


def _processors(text: str) -> list[dict[str, str]]:
    """One dictionary a logical processor; blocks are divided by blank lines, keys and values by a colon.

    s390x has no blocks: one list of facts about all, and a line `processor 0: version = FF, … machine = 3931` for each.
    """
    blocks = []
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        entry = {key.strip(): value.strip() for key, colon, value in pairs if colon}
        if parse_int(entry.get("processor")) is not None:
            blocks.append(entry)
    if blocks:
        return blocks
    lines = [(key.strip(), value.strip()) for key, colon, value in (line.partition(":") for line in text.splitlines()) if colon]
    shared = {key: value for key, value in lines if not key.startswith("processor ")}
    return [
        {**shared, **dict(re.findall(r"(\w+) = (\w+)", value)), "processor": key.split()[1]}
        for key, value in lines
        if re.fullmatch(r"processor \d+", key)
    ]


def _name(tree: Tree, first: dict[str, str], arch: str) -> str:
    told = first.get("model name") or first.get("Model Name")
    if told:
        return told
    if arch == "s390x":
        model = first.get("machine", "")
        return f"IBM {_IBM_Z.get(model, 'Z')} (machine type {model})" if model else "IBM Z"
    if first.get("cpu"):  # POWER10 (architected), altivec supported
        return first["cpu"].partition(",")[0]
    if first.get("uarch") or first.get("isa"):
        return f"{arch} processor ({first.get('uarch') or first['isa'].partition('_')[0]})"
    part = first.get("CPU part", "")
    if first.get("CPU implementer") == "0x41" and part in _ARM_PARTS:
        graviton = _GRAVITONS.get(part) if (tree.text("sys/class/dmi/id/sys_vendor") or "").startswith("Amazon") else None
        return f"{graviton} ({_ARM_PARTS[part]})" if graviton else _ARM_PARTS[part]
    return f"{arch} processor" + (f" (implementer {first.get('CPU implementer', '?')}, part {part})" if part else "")


def _memory(tree: Tree, notes: list[str]) -> int | None:
    value = tree.fields("proc/meminfo", ":").get("MemTotal", "")
    number = parse_int(value or None)
    if number is None:
        notes.append("proc/meminfo has no MemTotal: memory size is not known")
        return None
    return number * 1024  # the kernel prints kB and means KiB
