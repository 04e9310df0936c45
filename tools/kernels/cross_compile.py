"""Every own Triton kernel, compiled for every architecture it claims: `python -m tools.kernels.cross_compile --json FILE`.

No GPU is needed. For each backend that runs our Triton kernels on a target, the launches of a few calls (32 query heads on 8 of
128: prefill in every dtype, every feature at once, head size 256; decode, from a float8 cache too; the other operations once)
are planned as on that target and compiled; the machine code then says how many matrix instructions it has, and what it needs in
registers and shared memory. What a node compiles beyond these is `attnkit kernels build`'s.

A kernel is `ok` where it compiled, fits into the shared memory of the target and has matrix instructions if it has a matrix
product in a 16-bit dtype. Exempt is what stock Triton makes for sm_75 (code "sm_75-scalar", TRITON_ATTN's), which has none.
Other backends go through `attnkit.kernels.turing.hook` there and must have them. The report is the evidence behind the word
"compiled".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import triton
from triton import knobs

from attnkit import __version__, kernels
from attnkit.backends.base import Capability
from attnkit.backends.registry import all_backends
from attnkit.backends.triton_common import code_of, own
from attnkit.errors import unknown_name
from attnkit.hardware.device import Device
from attnkit.kernels.aot.compile import compile_one
from attnkit.kernels.aot.variants import planned, variant_name, writes
from attnkit.kernels.triton.launch import Launch
from attnkit.kernels.triton.targets import TARGETS
from attnkit.select.node import find_node
from attnkit.selftest.cases import Case
from attnkit.selftest.tensors import build
from attnkit.spec import Op
from tools.kernels.machine_code import inspect

SPLITS = 8
"""Splits of a decode's context: more than one, so that the merge, a kernel of its own, is compiled too."""


def _case(name: str, op: Op, *seqs: tuple[int, int], **changes: Any) -> Case:
    return replace(Case(name, "", op, "bfloat16", 32, 8, 128, 128, 16, seqs), **changes)


_EVERY_FEATURE: dict[str, Any] = {"window": (24, 0), "softcap": 20.0, "alibi": True, "sinks": True, "lse": True}
_MLA: dict[str, Any] = {"heads": 128, "kv_heads": 1, "head_dim": 576, "head_dim_v": 512, "block_size": 64}
_EVERY_DTYPE = (_case("prefill", "paged", (128, 128), (128, 128)),)
_ONE_DTYPE = (
    _case("prefill-features", "paged", (128, 128), (128, 128), **_EVERY_FEATURE),
    _case("prefill-d256", "paged", (128, 128), (128, 128), head_dim=256, head_dim_v=256),
    _case("decode", "paged", (1, 512), (1, 512)),
    _case("decode-fp8", "paged", (1, 512), (1, 512), kv_cache_dtype="fp8_e4m3"),
    _case("mla-decode", "mla_decode", (1, 512), (1, 512), **_MLA),
    _case("tree", "tree", (8, 128), (8, 128)),
    _case("dual-chunk", "dual_chunk", (64, 256), (64, 256)),
    _case("differential", "differential", (64, 128), (64, 128)),
)


PRODUCTS = (("ttir", "tt.dot"), ("ttgir", "warp_group_dot"))
"""How a matrix product looks in the compiler's stages; a Gluon kernel begins at the second one."""


def questions(capability: Capability, device: Device) -> Iterator[Case]:
    """The cases to compile for a provider on a device: what it claims of them, in bfloat16 where it has that, else float16."""

    def claimed(case: Case) -> list[Case]:
        each = (replace(case, dtype=dtype) for dtype in ("bfloat16", "float16", "float32"))
        return [one for one in each if not capability.reject(one.spec(), device)]

    for case in _EVERY_DTYPE:
        yield from claimed(case)
    for case in _ONE_DTYPE:
        yield from claimed(case)[:1]


def launches(case: Case, code: str) -> dict[str, Launch]:
    """The distinct launches of a case on a target, by variant name."""
    call = build(case)
    return {variant_name(launch): launch for launch in (*planned(call, code, SPLITS), *writes(call))}


def survey(target: str) -> Iterator[dict[str, Any]]:
    """One row a backend, case and kernel of a target; what two of them share is compiled once."""
    device = find_node(arch=target).device
    made: dict[tuple[str, str], dict[str, Any]] = {}
    for backend in all_backends():
        capability = own(backend, device)
        code = code_of(backend.name, target)
        for case in () if capability is None else questions(capability, device):
            for name, launch in launches(case, code).items():
                if (code, name) not in made:
                    made[code, name] = compiled(launch, code, case)
                where = {"backend": backend.name, "target": target, "code": code, "case": case.name, "dtype": case.dtype}
                yield {**where, **made[code, name], "variant": name}


def surveyed(target: str) -> list[dict[str, Any]]:
    """The rows of a target, from a compiler cache of its own that is thrown away; says on stderr how far it is."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope():
        knobs.cache.dir = folder
        for row in survey(target):
            rows.append(row)
            words = "ok" if row["ok"] else row["reason"]
            print(f"{target} {row['backend']} {row['case']} {row['kernel']} {words}", file=sys.stderr, flush=True)
    return rows


def compiled(launch: Launch, code: str, case: Case) -> dict[str, Any]:
    """What came out of one compilation, and whether it is what it must be."""
    kernel = launch.kernel.fn.__name__
    limit = TARGETS[code.partition("-")[0]].shared_limit
    started = time.monotonic()
    try:
        binary = compile_one(code, launch)
        cost = inspect(binary.asm)
    except Exception as error:  # whatever a compiler raises: the row says so, and the others are still compiled
        return {"kernel": kernel, "ok": False, "reason": f"{type(error).__name__}: {str(error).strip()[:500]}"}
    matrix, shared = cost.matrix(), int(binary.metadata.shared)
    reason = ""
    if shared > limit:
        reason = f"needs {shared} bytes of shared memory; {code} has {limit}"
    elif (
        any(word in binary.asm.get(stage, "") for stage, word in PRODUCTS)
        and not matrix
        and case.dtype != "float32"
        and code != "sm_75-scalar"
    ):
        reason = "has a matrix product and no matrix instruction"
    return {
        "kernel": kernel,
        "ok": not reason,
        "reason": reason,
        "matrix": matrix,
        "instructions": cost.instructions.total(),
        "registers": cost.registers,
        "shared_bytes": shared,
        "shared_limit": limit,
        "spill_bytes": cost.spill_bytes,
        "scratch_bytes": cost.stack_bytes,
        "lane_spills": cost.lane_spills,
        "code_bytes": len(binary.kernel),
        "seconds": round(time.monotonic() - started, 1),
    }


def sources() -> str:
    """sha256 of the kernels' sources, so that a report says which code it is about."""
    folder = Path(kernels.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("triton/**/*.py"), *folder.glob("turing/*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def surveys(targets: Sequence[str], jobs: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of each target, `jobs` targets at a time."""
    if jobs == 1:
        yield from map(surveyed, targets)
        return
    # A fresh interpreter each: a fork of a process that has run torch may hang in its thread pools.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(surveyed, targets)


def report(rows: Sequence[dict[str, Any]], code: str) -> dict[str, Any]:
    """The whole report of what was compiled so far; `code`: the digest of the kernels that were imported."""
    return {
        "kind": "cross-compile",
        "attnkit_version": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "command": ["python", "-m", "tools.kernels.cross_compile", *sys.argv[1:]],
        "compiler": f"Triton {triton.__version__}",
        "assemblers": {name: str(getattr(knobs.nvidia, name).version) for name in ("ptxas", "ptxas_blackwell")},
        "host": {"machine": platform.machine(), "python": platform.python_version()},
        "sources": code,
        "kernels": rows,
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.kernels.cross_compile", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="the file to write")
    parser.add_argument("--target", help=f"some of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="targets compiled at a time, each in a process of its own")
    arguments = parser.parse_args()
    targets = arguments.target.split(",") if arguments.target else list(TARGETS)
    for target in targets:
        if target not in TARGETS:
            parser.error(str(unknown_name("target", target, TARGETS)))
    code = sources()  # as they are imported, not as they are when all is compiled
    rows: list[dict[str, Any]] = []
    for each in surveys(targets, arguments.jobs):
        rows += each  # written target by target: an hour's work is not lost where it is cut short
        arguments.json.write_text(json.dumps(report(rows, code), indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
