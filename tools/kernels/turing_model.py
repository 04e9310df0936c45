"""An analytical MODEL of a GeForce RTX 2080 Ti running our kernels. No number here was measured on such a card.

It counts the instructions of the main loop in the machine code for sm_75 and multiplies by what each costs on a Turing
multiprocessor (NVIDIA Turing whitepaper; Jia et al., arXiv 1903.07486). Two bounds come out: all pipes overlap perfectly (the
slowest one decides), and nothing overlaps (their sum). A real card should lie between; memory and launch are left out of
prefill.

    python -m tools.kernels.turing_model        prints the table of docs/guides/turing.md
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from tools.kernels.machine_code import disassemble, opcodes


@dataclass(frozen=True)
class Card:
    """What the model knows of a card: multiprocessors, boost clock in Hz, memory bytes a second, cycles an HMMA.1688.F32."""

    name: str
    units: int
    clock: float
    bandwidth: float
    hmma_f32_cycles: int

    @property
    def peak(self) -> float:
        """Tensor-core float32-accumulate operations a second."""
        return self.units * SUBCORES * 2 * MACS_PER_HMMA / self.hmma_f32_cycles * self.clock


SUBCORES = 4
MACS_PER_HMMA = 16 * 8 * 8

RTX_2080_TI = Card("RTX 2080 Ti", 68, 1545e6, 616e9, hmma_f32_cycles=16)
"""GeForce Turing accumulates in float32 at half the rate of float16: 53.8 TFLOP/s."""

T4 = Card("T4", 40, 1590e6, 320e9, hmma_f32_cycles=8)
"""The T4 accumulates in float32 at the full rate; its 70 W hold the clock below boost in long runs, which is not modelled."""

_CYCLES: tuple[tuple[str, str, float], ...] = (
    (r"MUFU.*", "special functions", 8),
    (r"LDSM.*\.4.*|(LDS|STS).*\.128.*", "shared memory", 16),
    (r"LDSM.*\.2.*|(LDS|STS).*\.64.*", "shared memory", 8),
    (r"(LDSM|LDS|STS|SHFL)\b.*", "shared memory", 4),
    (r"(LDG|STG|LD|ST)\b.*\.128.*", "global memory", 32),
    (r"(LDG|STG|LD|ST)\b.*", "global memory", 8),
    (r"(FFMA|FADD|FMUL|FMNMX|FSETP|FSEL|HADD2|HMUL2|HFMA2|F2F|I2F|F2I)\b.*", "float", 2),
)
"""Cycles of one warp instruction on one of the four sub-cores. Shared and global memory serve all four: theirs are times 4."""


@dataclass(frozen=True)
class Estimate:
    """The model's answer for one kernel: bounds in operations a second, and cycles a loop step of each pipe."""

    low: float
    high: float
    cycles: dict[str, float]
    mix: Counter[str]


def main_loop(listing: str) -> Counter[str]:
    """Opcodes of the innermost loop with the most matrix instructions for its length, from nvdisasm's listing.

    Raises:
        ValueError: no loop with matrix instructions.
    """
    lines = listing.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"^\s*(\.L_\w+):", line))}
    loops = []
    for end, line in enumerate(lines):
        jump = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line)
        if jump and labels.get(jump[1], end) < end:
            body = opcodes("\n".join(lines[labels[jump[1]] : end + 1]))
            matrix = sum(n for op, n in body.items() if op.startswith("HMMA"))
            if matrix:
                loops.append((matrix / sum(body.values()), body))
    if not loops:
        raise ValueError("no loop with matrix instructions in this listing")
    return max(loops, key=lambda loop: loop[0])[1]


def estimate(ptx: str, card: Card) -> Estimate:
    """The model's bounds for the main loop of a kernel, as if it ran on every multiprocessor all the time."""
    mix = main_loop(disassemble(ptx, "sm_75"))
    cycles: dict[str, float] = {"tensor cores": 0.0, "issue": float(sum(mix.values()))}
    for opcode, count in mix.items():
        if opcode.startswith("HMMA"):
            cycles["tensor cores"] += count * card.hmma_f32_cycles
            continue
        for pattern, pipe, cost in _CYCLES:
            if re.fullmatch(pattern, opcode):
                cycles[pipe] = cycles.get(pipe, 0.0) + count * cost
                break
    share = cycles["tensor cores"]
    return Estimate(card.peak * share / sum(cycles.values()), card.peak * share / max(cycles.values()), cycles, mix)


def table() -> str:
    """Markdown: prefill by head size for each card, decode's bound by memory."""
    import torch

    from attnkit.kernels.triton.paged import plan as paged_plan
    from attnkit.kernels.triton.targets import compile_launch
    from attnkit.kernels.turing import hook
    from attnkit.spec import Softmax, VarlenAttention

    lines = [
        "| head size | main loop: HMMA / all instructions | RTX 2080 Ti, TFLOP/s | T4, TFLOP/s | slowest pipe (2080 Ti) |",
        "|---|---|---|---|---|",
    ]
    hook.enable()
    for dim in (64, 128, 256):
        rows = torch.zeros(512, 8, dim, dtype=torch.float16)
        starts = torch.tensor([0, 512], dtype=torch.int32)
        call = VarlenAttention(rows, rows, rows, starts, starts, 512, 512, Softmax(dim**-0.5))
        (launch,) = paged_plan.plan_varlen(call, arch="sm_75")[2]
        ptx = compile_launch(launch, "sm_75").asm["ptx"]
        card, small = estimate(ptx, RTX_2080_TI), estimate(ptx, T4)
        matrix = sum(n for op, n in card.mix.items() if op.startswith("HMMA"))
        lines.append(
            f"| {dim} | {matrix} / {sum(card.mix.values())} | {card.low / 1e12:.0f} to {card.high / 1e12:.0f} "
            f"| {small.low / 1e12:.0f} to {small.high / 1e12:.0f} | {max(card.cycles, key=lambda pipe: card.cycles[pipe])} |"
        )
    hook.disable()
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
