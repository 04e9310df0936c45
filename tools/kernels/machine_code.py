"""What a kernel's machine code costs: registers, spills, scratch memory and its mix of instructions.

NVIDIA: the ptxas and nvdisasm that Triton ships, so that no CUDA toolkit and no GPU is needed. AMD: the compiler's own assembly
text, whose trailer names the same facts.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from attnkit.errors import UnsupportedError

_SASS_LINE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_STACK = re.compile(r"(\d+) bytes stack frame")
_PTX_TARGET = re.compile(r"^\.target\s+(sm_(\d+)\w*)", re.MULTILINE)
_GCN_LINE = re.compile(r"^\s+([a-z][a-z0-9]*_[a-z0-9_]+)", re.MULTILINE)
_GCN_FACT = re.compile(
    r"^\s+\.(vgpr_count|vgpr_spill_count|sgpr_spill_count|private_segment_fixed_size):\s+(\d+)", re.MULTILINE
)
_MATRIX = re.compile(r"^(?:[A-Z]*G?MMA|UTC[A-Z]*MMA)(?:\.|$)|^v_(?:mfma|smfmac|wmma|swmmac)_")


@dataclass(frozen=True)
class Cost:
    """One kernel's machine code.

    Args:
        registers: 32-bit (vector) registers a thread; on AMD with the accumulation registers.
        spill_bytes: spilled to memory: NVIDIA stores + loads a thread, AMD 4 a vector register; static, 0 means nothing was.
        stack_bytes: stack frame (AMD: scratch) a thread.
        instructions: static count of each opcode with its modifiers.
        lane_spills: AMD's scalar registers that were put into lanes of vector registers, which costs no memory.
    """

    registers: int
    spill_bytes: int
    stack_bytes: int
    instructions: Counter[str]
    lane_spills: int = 0

    def count(self, *stems: str) -> int:
        """Static count of the opcodes that begin with one of these words ("HMMA.1688" counts HMMA.1688.F32 …)."""
        return sum(n for op, n in self.instructions.items() if op.startswith(stems))

    def matrix(self) -> dict[str, int]:
        """The matrix instructions of any vendor (HMMA, HGMMA, UTCHMMA, v_mfma_…, v_wmma_…), by opcode."""
        return {op: n for op, n in sorted(self.instructions.items()) if _MATRIX.match(op)}


def inspect(asm: Mapping[str, Any]) -> Cost:
    """The cost of a kernel that Triton compiled, from its outputs by stage name ("ptx" or "amdgcn").

    Raises:
        UnsupportedError: neither is there, or a tool refused it.
    """
    if "ptx" in asm:
        target = _PTX_TARGET.search(asm["ptx"])
        if target is None:
            raise UnsupportedError("the PTX names no target")
        return inspect_ptx(asm["ptx"], target[1])
    if "amdgcn" in asm:
        return inspect_amdgcn(asm["amdgcn"])
    raise UnsupportedError(f"neither PTX nor AMD assembly among {', '.join(asm)}")


def inspect_ptx(ptx: str, arch: str) -> Cost:
    """Assemble `ptx` for `arch` ("sm_75") and read the result.

    Raises:
        UnsupportedError: ptxas refused it; the message holds ptxas's own words.
    """
    log, listing = _assemble(ptx, arch)
    registers, spills, stack = _REGISTERS.search(log), _SPILLS.search(log), _STACK.search(log)
    if not (registers and spills and stack):
        raise UnsupportedError(f"ptxas -v did not say what the kernel costs: {log.strip()[-500:]}")
    return Cost(int(registers[1]), int(spills[1]) + int(spills[2]), int(stack[1]), opcodes(listing))


def inspect_amdgcn(text: str) -> Cost:
    """Read the compiler's assembly for an AMD GPU.

    Raises:
        UnsupportedError: it does not end with the kernel's facts.
    """
    facts = {name: int(value) for name, value in _GCN_FACT.findall(text)}
    try:
        return Cost(
            registers=facts["vgpr_count"],
            spill_bytes=4 * facts["vgpr_spill_count"],
            stack_bytes=facts["private_segment_fixed_size"],
            instructions=Counter(_GCN_LINE.findall(text)),
            lane_spills=facts["sgpr_spill_count"],
        )
    except KeyError as missing:
        raise UnsupportedError(f"the assembly does not name its {missing.args[0]}") from None


def disassemble(ptx: str, arch: str) -> str:
    """nvdisasm's listing, labels included, of `ptx` assembled for `arch`."""
    return _assemble(ptx, arch)[1]


def opcodes(listing: str) -> Counter[str]:
    """How often each SASS opcode with its modifiers occurs in nvdisasm's listing."""
    return Counter(_SASS_LINE.findall(listing))


@lru_cache(maxsize=64)  # one kernel is asked for its cost and its listing, and is part of many launches
def _assemble(ptx: str, arch: str) -> tuple[str, str]:
    """What ptxas -v and nvdisasm say."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [_assembler(arch), "-v", f"--gpu-name={arch}", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnsupportedError(f"ptxas refuses this code for {arch}: {done.stderr.strip()[-2000:]}")
        listing = subprocess.run([_tool("nvdisasm"), "-c", str(cubin)], capture_output=True, text=True, check=False)
        if listing.returncode:
            raise UnsupportedError(f"nvdisasm cannot read the code for {arch}: {listing.stderr.strip()[-500:]}")
    return done.stdout + done.stderr, listing.stdout


def _assembler(arch: str) -> str:
    """Triton ships a ptxas of its own for sm_100 and later."""
    number = int(re.sub(r"\D", "", arch))
    return _tool("ptxas_blackwell" if number >= 100 else "ptxas")


def _tool(name: str) -> str:
    from triton import knobs

    return str(getattr(knobs.nvidia, name).path)
