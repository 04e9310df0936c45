"""What the machine code of an NVIDIA kernel costs: registers, spills, shared memory and its mix of instructions.

Uses the ptxas and cuobjdump/nvdisasm that Triton ships, so that no CUDA toolkit and no GPU is needed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from attnkit.errors import UnsupportedError

_SASS_LINE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_STACK = re.compile(r"(\d+) bytes stack frame")


@dataclass(frozen=True)
class Cost:
    """One kernel's machine code.

    Args:
        registers: 32-bit registers a thread.
        spill_bytes: spilled stores + loads a thread, static count; 0 means nothing was spilled.
        stack_bytes: stack frame a thread.
        instructions: static count of each SASS opcode with its modifiers.
    """

    registers: int
    spill_bytes: int
    stack_bytes: int
    instructions: Counter[str]

    def count(self, *stems: str) -> int:
        """Static count of the opcodes that begin with one of these words ("HMMA.1688" counts HMMA.1688.F32 …)."""
        return sum(n for op, n in self.instructions.items() if op.startswith(stems))


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


def disassemble(ptx: str, arch: str) -> str:
    """nvdisasm's listing, labels included, of `ptx` assembled for `arch`."""
    return _assemble(ptx, arch)[1]


def opcodes(listing: str) -> Counter[str]:
    """How often each SASS opcode with its modifiers occurs in nvdisasm's listing."""
    return Counter(_SASS_LINE.findall(listing))


def _assemble(ptx: str, arch: str) -> tuple[str, str]:
    """What ptxas -v and nvdisasm say."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [_tool("ptxas"), "-v", f"--gpu-name={arch}", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnsupportedError(f"ptxas refuses this code for {arch}: {done.stderr.strip()[-2000:]}")
        listing = subprocess.run([_tool("nvdisasm"), "-c", str(cubin)], capture_output=True, text=True, check=False)
        if listing.returncode:
            raise UnsupportedError(f"nvdisasm cannot read the code for {arch}: {listing.stderr.strip()[-500:]}")
    return done.stdout + done.stderr, listing.stdout


def _tool(name: str) -> str:
    from triton import knobs

    return str(getattr(knobs.nvidia, name).path)
