#!/usr/bin/env python3
"""Keeps of the GPU code in an environment's libraries what some architectures run: `prune.py ENVIRONMENT --arch sm_90,…`.

A library compiled for many architectures holds, in each of its fat binaries, the machine code of every one of them, of which a
GPU runs one. Each fat binary keeps its place, as code refers to it by address; what is left of it moves to its front, and the
pages that became free are neither in the file nor mapped: the LOAD segment around them becomes several. Runs in the builder
stage with the standard library only; what it removed goes into a report that the bill of materials reads.

The format of fat binaries is the one that `fatbinary` of CUDA 11 to 13 writes: a header (magic, version, its size, the size of
what follows), then entries, each with a header (kind, version, its size, payload's size; architecture at byte 28, flags at 40).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"\x50\xed\x55\xba"
HEAD = struct.Struct("<IHHQ")
"""Of a fat binary: magic, version, size of this header, size of the entries."""
ENTRY = struct.Struct("<HHIQIIHHIIIQQQ")
"""Of an entry: kind, version, size of this header, of the payload, of the compressed one, options, minor and major version,
architecture, name's offset and length, flags, a zero, size when unpacked."""
PTX, CUBIN, LTO = 1, 2, 8
KINDS = {PTX: "PTX", CUBIN: "machine code", LTO: "LTO"}
EXACT, FAMILY = 1 << 20, 1 << 21
"""Flags of code for this very architecture (sm_90a), and for it and later ones of its major version (sm_100f)."""
PAGE = 4096
LEAST_HOLE = 4 * PAGE
"""A shorter run of free pages is not worth a segment."""
MOST_SEGMENTS = 4000
LOAD, PHDR = 1, 6
NOBITS = 8
SUFFIXES = {0: "", EXACT: "a", FAMILY: "f"}


FROM_100 = ("triton/backends/nvidia/bin/ptxas-blackwell",)
"""Assemblers that Triton calls for sm_100 and later alone."""


class FormatError(Exception):
    """A file is not what this tool can rewrite; the message says why."""


@dataclass(frozen=True, order=True)
class Code:
    """One entry of a fat binary."""

    start: int
    size: int
    kind: int
    arch: int
    variant: int

    @property
    def name(self) -> str:
        """As NVIDIA's tools call it: sm_90a, compute_80."""
        return f"{'sm' if self.kind == CUBIN else 'compute'}_{self.arch}{SUFFIXES[self.variant]}"

    def runs_on(self, target: int) -> bool:
        """Whether a GPU of this architecture can run it, compiled further where it is no machine code."""
        if self.variant == EXACT:
            return self.arch == target
        same_major = self.arch // 10 == target // 10
        return self.arch <= target and (same_major or (self.kind != CUBIN and self.variant != FAMILY))


def named(name: str) -> Code:
    """An entry by its name, such as sm_90a or compute_80, of no size."""
    match = re.fullmatch(r"(sm|compute)_(\d+)([af]?)", name)
    if match is None:
        raise ValueError(f"{name!r} is no name of GPU code")
    variant = next(flag for flag, suffix in SUFFIXES.items() if suffix == match[3])
    return Code(0, 0, CUBIN if match[1] == "sm" else PTX, int(match[2]), variant)


def fat_binary(data: bytes | bytearray | memoryview, start: int) -> list[Code] | None:
    """The entries of the fat binary at an offset; None where there is none."""
    if start % 8 or start + HEAD.size > len(data):
        return None
    _, version, head, size = HEAD.unpack_from(data, start)
    at, end = start + head, start + head + size
    if version != 1 or head != HEAD.size or end > len(data):
        return None
    found = []
    while at < end:
        if at + ENTRY.size > end:
            return None
        kind, _, header, payload, *_, arch, _, _, flags, _, _ = ENTRY.unpack_from(data, at)
        whole = header + payload
        if header < ENTRY.size or whole > end - at or (flags & EXACT and flags & FAMILY):
            return None
        found.append(Code(at, whole, kind, arch, flags & (EXACT | FAMILY)))
        at += whole
    return found


def fat_binaries(data: bytes | bytearray) -> Iterator[tuple[int, list[Code]]]:
    """Offset and entries of every fat binary in a file."""
    at = data.find(MAGIC)
    while at >= 0:
        entries = fat_binary(data, at)
        if entries is None:
            at += 4
        else:
            yield at, entries
            at = entries[-1].start + entries[-1].size if entries else at + HEAD.size
        at = data.find(MAGIC, at)


def chosen(entries: Sequence[Code], targets: Iterable[int]) -> list[Code]:
    """The entries that GPUs of these architectures run: machine code, else PTX, and code for the linker at run time (LTO).

    Entries of kinds that are not known stay.
    """
    keep = {code for code in entries if code.kind not in KINDS}
    for target in targets:
        fits = [code for code in entries if code.runs_on(target)]
        for kind in (CUBIN, LTO, PTX):
            of_kind = [code for code in fits if code.kind == kind]
            if kind == PTX and any(code.kind == CUBIN for code in fits):
                continue
            best = max((code.arch for code in of_kind), default=0)
            keep |= {code for code in of_kind if code.arch == best}
    return sorted(keep)


def stub(code: Code) -> bytes:
    """An entry without code, for a fat binary that would be empty: the driver says that it has none for the GPU, as before."""
    names = b"\0.shstrtab\0".ljust(16, b"\0")
    ident = b"\x7fELF\x02\x01\x01\x41\x08".ljust(16, b"\0")
    flags = 6 << 24 | code.arch << 8 | 2
    elf = ident + struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, 64 + len(names), flags, 64, 56, 0, 64, 2, 1)
    payload = elf + names + bytes(64) + struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, 64, 11, 0, 0, 1, 0)
    head = ENTRY.pack(CUBIN, 0x101, ENTRY.size, len(payload), 0, 0, 0, 1, code.arch, 0, 0, code.variant | 0x11, 0, 0)
    return head + payload


def reduce(data: bytearray, targets: Sequence[int]) -> tuple[list[tuple[int, int]], Counter[str], Counter[str]]:
    """Move what stays of each fat binary to its front and zero the rest.

    Returns:
        The zeroed ranges (start, end), and the bytes kept and removed by architecture.
    """
    free: list[tuple[int, int]] = []
    kept: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    for start, entries in fat_binaries(data):
        keep = chosen(entries, targets)
        for code in entries:
            (kept if code in keep else removed)[code.name] += code.size
        if len(keep) == len(entries):
            continue
        end = entries[-1].start + entries[-1].size
        left = b"".join(bytes(data[code.start : code.start + code.size]) for code in keep) or stub(entries[0])
        if len(left) >= end - start - HEAD.size:
            continue
        HEAD.pack_into(data, start, int.from_bytes(MAGIC, "little"), 1, HEAD.size, len(left))
        at = start + HEAD.size
        data[at : at + len(left)] = left
        data[at + len(left) : end] = bytes(end - at - len(left))
        free.append((at + len(left), end))
    return free, kept, removed


@dataclass
class Segment:
    """A program header of a 64-bit ELF file."""

    kind: int
    flags: int
    offset: int
    address: int
    physical: int
    in_file: int
    in_memory: int
    align: int

    LAYOUT = struct.Struct("<IIQQQQQQ")

    def packed(self) -> bytes:
        """As in a file."""
        return self.LAYOUT.pack(*(getattr(self, name) for name in self.__dataclass_fields__))


def holes(free: Iterable[tuple[int, int]], segments: Iterable[Segment]) -> list[tuple[int, int]]:
    """The runs of whole pages in the zeroed ranges of a file that need not be in it, in order, inside one LOAD segment each."""
    found = []
    loads = [segment for segment in segments if segment.kind == LOAD]
    for start, end in free:
        inside = next((s for s in loads if s.offset <= start and end <= s.offset + s.in_file), None)
        if inside is None:
            continue
        shift = inside.address - inside.offset
        first, last = -(-(start + shift) // PAGE) * PAGE - shift, (end + shift) // PAGE * PAGE - shift
        if last - first >= LEAST_HOLE:
            found.append((first, last))
    largest = sorted(found, key=lambda hole: hole[0] - hole[1])[:MOST_SEGMENTS]
    return sorted(largest)


def cut(data: bytearray, free: Iterable[tuple[int, int]]) -> bytearray:
    """The ELF file without the free pages: every address stays, what followed a hole is nearer to the front of the file.

    The table of program headers, which has grown, is at the end, behind every page that is mapped.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise FormatError("no little-endian 64-bit ELF file")
    table, sections = struct.unpack_from("<QQ", data, 32)
    entry, count, section, number = struct.unpack_from("<HHHH", data, 54)
    segments = [Segment(*Segment.LAYOUT.unpack_from(data, table + i * entry)) for i in range(count)]
    gone = holes(free, segments)
    if not gone:
        return data

    def moved(offset: int) -> int:
        return offset - sum(min(end, offset) - start for start, end in gone if start < offset)

    result: list[Segment] = []
    for segment in segments:
        if segment.kind == PHDR:
            continue
        inside = [hole for hole in gone if segment.offset <= hole[0] and hole[1] <= segment.offset + segment.in_file]
        if segment.kind != LOAD:
            if inside:
                raise FormatError(f"a segment of kind {segment.kind:#x} holds fat binaries")
            segment.offset = moved(segment.offset)
            result.append(segment)
            continue
        at, end, shift = segment.offset, segment.offset + segment.in_file, segment.address - segment.offset
        for start, after in [*inside, (end, end)]:
            size, last = start - at, start == end
            if size or last:
                memory = segment.in_memory - (at - segment.offset) if last else size
                place = at + shift
                result.append(Segment(LOAD, segment.flags, moved(at), place, place, size, memory, PAGE))
            at = after
    pieces, at = [], 0
    for start, end in [*gone, (len(data), len(data))]:
        pieces.append(data[at:start])
        at = end
    smaller = bytearray().join(pieces)
    for i in range(number):
        header = moved(sections) + i * section
        kind, _, _, offset, size = struct.unpack_from("<IQQQQ", smaller, header + 4)
        after = moved(offset) if kind == NOBITS else moved(offset + size)
        struct.pack_into("<QQ", smaller, header + 24, moved(offset), size if kind == NOBITS else after - moved(offset))
    smaller += bytes(-len(smaller) % PAGE + PAGE)
    struct.pack_into("<QQ", smaller, 32, len(smaller), moved(sections) if sections else 0)
    struct.pack_into("<H", smaller, 56, len(result))
    return smaller + b"".join(segment.packed() for segment in result)


def prune(path: Path, targets: Sequence[int]) -> dict[str, object] | None:
    """Rewrite a library in place; what happened to it, None where it has no fat binary or nothing to remove."""
    data = bytearray(path.read_bytes())
    if data[:4] != b"\x7fELF" or MAGIC not in data:
        return None
    before = len(data)
    free, kept, removed = reduce(data, targets)
    if not free:
        return None
    after = cut(data, free)
    partial = path.with_name(path.name + ".pruned")
    partial.write_bytes(after)
    shutil.copymode(path, partial)
    partial.rename(path)
    return {
        "bytes": len(after),
        "bytes_before": before,
        "kept": dict(sorted(kept.items())),
        "removed": dict(sorted(removed.items())),
    }


def code_in(path: Path) -> dict[str, int]:
    """Bytes of GPU code in a file by architecture; entries without code do not count."""
    data = path.read_bytes()
    found: Counter[str] = Counter()
    for _, entries in fat_binaries(data):
        for code in entries:
            if data[code.start : code.start + code.size] != stub(code):
                found[code.name] += code.size
    return dict(sorted(found.items()))


def binaries(environment: Path) -> Iterator[Path]:
    """The ELF files below a folder."""
    for path in sorted(environment.rglob("*")):
        if not path.is_symlink() and path.is_file():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def architectures(text: str) -> list[int]:
    """`sm_90,sm_100` as numbers. ValueError for anything else."""
    found = [re.fullmatch(r"sm_(\d{2,3})", word.strip()) for word in text.split(",")]
    if not all(found):
        raise ValueError(f"{text!r} is no list of architectures such as sm_80,sm_90")
    return [int(match[1]) for match in found if match]


def main(argv: list[str] | None = None) -> int:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", type=Path, help="a folder; every ELF file below it is looked at")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--arch", help="comma-separated: sm_90,sm_100")
    what.add_argument("--list", action="store_true", help="only print each file's size and GPU code by architecture, as JSON")
    parser.add_argument("--report", type=Path, help="write what was removed from each library, as JSON")
    args = parser.parse_args(argv)
    if args.list:
        root: Path = args.environment
        for path in binaries(root):
            print(json.dumps([path.relative_to(root).as_posix(), path.stat().st_size, code_in(path)]))
        return 0
    try:
        targets = architectures(args.arch)
    except ValueError as error:
        print(f"error: --arch: {error}", file=sys.stderr)
        return 2
    libraries: dict[str, dict[str, object]] = {}
    saved = 0
    for path in list(binaries(args.environment)):
        found = prune(path, targets)
        if found is not None:
            libraries[path.relative_to(args.environment).as_posix()] = found
            before, after = int(str(found["bytes_before"])), int(str(found["bytes"]))
            saved += before - after
            print(f"prune: {before / 1e6:8.1f} -> {after / 1e6:7.1f} MB  {path.name}")
    for pattern in FROM_100 if max(targets) < 100 else ():
        for path in sorted(args.environment.rglob(pattern)):
            saved += path.stat().st_size
            libraries[path.relative_to(args.environment).as_posix()] = {"bytes": 0, "bytes_before": path.stat().st_size}
            path.unlink()
    print(f"prune: {saved / 1e6:.1f} MB of {len(libraries)} libraries, for {args.arch}")
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        report = {"architectures": args.arch.split(","), "libraries": libraries}
        args.report.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
