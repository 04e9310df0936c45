"""compute-sanitizer over the quick self-test of our kernels: `python -m tools.kernels.sanitize --json FILE`, on an NVIDIA GPU.

For each of our backends and each of memcheck (bounds, misaligned addresses), racecheck (shared memory) and initcheck (memory
that nobody wrote). Before them memcheck runs over a kernel that writes past its buffer, which it must report: without that,
silence would say nothing.

racecheck does not follow an mbarrier at which one thread arrives for its warp group after a `bar.sync`, as Triton compiles
`mbarrier.arrive`; in kernels made of those (`hopper_prefill`, `hopper_mla_decode`) it reports what is in order. The report
counts hazards by kernel, so that a hazard elsewhere shows.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from attnkit.backends.registry import all_backends
from attnkit.backends.triton_common import own
from attnkit.boot.versions import versions
from attnkit.jsonio import now, to_json, write_atomically
from attnkit.select.node import find_node
from tools.evidence import command_line

TOOLS = ("memcheck", "racecheck", "initcheck")
PLANTED = """
import torch, triton, triton.language as tl

@triton.jit
def past_the_end(out, n):
    tl.store(out + n + tl.arange(0, 32), 1.0)

torch.cuda.caching_allocator_enable(False)
past_the_end[(1,)](torch.zeros(1 << 20, device="cuda"), 1 << 24)
torch.cuda.synchronize()
"""
_KERNEL = re.compile(r"(?:access at|    at) (\w+)\+0x")
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


@dataclass(frozen=True)
class Run:
    """One run under one tool. errors: that it reported; None: it said nothing, or ran past its time."""

    what: str
    tool: str
    errors: int | None
    by_kernel: dict[str, int]
    exit_code: int | None
    seconds: float
    said: str


def run(what: str, tool: str, arguments: Sequence[str], limit: float) -> Run:
    """`python arguments` under a tool of compute-sanitizer."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = ["compute-sanitizer", "--tool", tool, "--target-processes", "all", "--log-file", str(log), sys.executable]
        try:
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=limit)
            code, said = done.returncode, (done.stdout + done.stderr)[-600:]
        except subprocess.TimeoutExpired:
            code, said = None, f"ended after {limit:.0f} s"
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    found = [int(number) for number in _SUMMARY.findall(text)]
    by_kernel = Counter(_KERNEL.findall(text))
    if sum(found):
        said = text[:3000]
    errors = sum(found) if found else None
    return Run(what, tool, errors, by_kernel, code, round(time.monotonic() - begin, 1), said if code or errors != 0 else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a tool reported something or did not end, or the planted fault was not found."""
    parser = argparse.ArgumentParser(prog="python -m tools.kernels.sanitize", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--seconds", type=float, default=1800.0, help="limit of a run")
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args(arguments)
    if shutil.which("compute-sanitizer") is None:
        parser.error("there is no compute-sanitizer here: it is part of the CUDA toolkit")
    device = find_node().device
    ours = [b.name for b in all_backends() if b.automatic and own(b, device) is not None]
    limit = asked.seconds
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(asked.jobs) as pool:
        planted_file = Path(folder) / "planted.py"  # a kernel's source must be in a file
        planted_file.write_text(PLANTED, encoding="utf-8")
        futures = [pool.submit(run, "a planted write past the end", "memcheck", [str(planted_file)], limit)]
        for tool in TOOLS:
            for name in ours:
                question = ["-m", "attnkit.cli", "selftest", "--backend", name, "--level", "quick"]
                futures.append(pool.submit(run, name, tool, question, limit))
        runs = [future.result() for future in futures]
    for one in runs:
        print(f"{one.tool} {one.what}: {one.errors} errors, exit code {one.exit_code}, {one.seconds} s")
    command = command_line("tools.kernels.sanitize", sys.argv[1:] if arguments is None else arguments)
    report = {
        "kind": "sanitizer",
        "taken": now(),
        "command": command,
        "device": device.name,
        "versions": versions(device),
        "runs": runs,
    }
    write_atomically(asked.json, to_json(report))
    planted, *rest = runs
    return 0 if planted.errors and all(one.errors == 0 and one.exit_code == 0 for one in rest) else 1


if __name__ == "__main__":
    sys.exit(main())
