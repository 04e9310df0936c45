"""The cross-compile table of docs/reference/backends.md, made from docs/reports/cross-compile.

A report there is written by `python -m tools.kernels.cross_compile --json docs/reports/cross-compile/NAME.json`, of every
target or with `--target` of some.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from attnkit.backends.triton_common import GPU_ARCHS

REPORTS = Path(__file__).resolve().parents[2] / "docs" / "reports" / "cross-compile"
COLUMNS = {
    "prefill": ("paged_prefill", "hopper_prefill"),
    "decode": ("paged_decode", "warp_decode"),
    "MLA decode": ("mla_decode_split", "hopper_mla_decode"),
    "dual chunk": ("dual_chunk_attention",),
}
"""Kernels with a matrix product by what they do; the others (merge of splits, cache write, the difference) have none."""


def markdown() -> list[str]:
    """The section's lines; one row a kind of machine code, of the newest report that has it."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in REPORTS.glob("*.json")]
    newest: dict[str, dict[str, Any]] = {}
    for document in sorted(documents, key=lambda found: found["created"]):
        newest |= {row["code"]: document for row in document["kernels"]}
    lines = [
        "## Triton kernels, cross-compiled",
        "",
        "Compiled by `python -m tools.kernels.cross_compile`, without a GPU; the reports are in",
        "`docs/reports/cross-compile`. A",
        "cell shows the smallest and largest number of matrix instructions in the machine code of that kernel's",
        "variants (16-bit",
        "dtypes), their kind, and the largest shared memory (LDS) that one needs. Spilled: registers that went to",
        "memory, the",
        "most bytes a thread, and the kernel. sm_75-scalar is what stock Triton produces for sm_75, without tensor",
        "cores, and",
        "what TRITON_ATTN uses there; sm_75 is produced [with the Turing hook](../guides/turing.md). PALLAS is lowered",
        "for TPUs by",
        "`jax.export`, which is not machine code, so it does not count as compiled.",
        "",
        f"| code | compiler, day | variants | {' | '.join(COLUMNS)} | shared limit | spilled |",
        "|---|---|---|" + "---|" * (len(COLUMNS) + 2),
    ]
    for code in sorted(newest, key=lambda name: (name.startswith("gfx"), len(name.partition("-")[0]), name)):
        document = newest[code]
        mine = list({row["variant"]: row for row in document["kernels"] if row["code"] == code}.values())
        cells = [_cell([row for row in mine if row["kernel"] in kernels]) for kernels in COLUMNS.values()]
        limit = next((f"{row['shared_limit'] // 1024} KiB" for row in mine if row["ok"]), "–")
        made = f"{document['compiler']}, {document['created'][:10]}"
        lines.append(f"| {code} | {made} | {len(mine)} | {' | '.join(cells)} | {limit} | {_spills(mine)} |")
    claimed = [pattern for vendor in ("nvidia", "amd") for pattern in GPU_ARCHS[vendor]]
    missing = [pattern for pattern in claimed if not any(fnmatchcase(code, pattern) for code in newest)]
    if missing:
        lines += ["", f"Claimed, but without a report: {', '.join(missing)}."]
    return lines


def _cell(rows: Iterable[dict[str, Any]]) -> str:
    wanted = [row for row in rows if row["dtype"] != "float32"]
    if not wanted:
        return "–"
    bad = next((row["reason"] for row in wanted if not row["ok"]), "")
    if bad:
        return f"**{bad}**"
    counts = sorted(sum(row["matrix"].values()) for row in wanted)
    kinds = sorted({_kind(name) for row in wanted for name in row["matrix"]})
    shared = max(row["shared_bytes"] for row in wanted) / 1024
    span = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]}–{counts[-1]}"
    return f"{span} {', '.join(kinds) or 'matrix instructions'}, {shared:.0f} KiB"


def _kind(opcode: str) -> str:
    """HMMA of HMMA.16816.F32.BF16, MFMA of v_mfma_f32_32x32x8_bf16."""
    return opcode.split("_")[1].upper() if opcode.startswith("v_") else opcode.split(".", maxsplit=1)[0]


def _spills(rows: Iterable[dict[str, Any]]) -> str:
    worst: dict[str, int] = {}
    for row in rows:
        if row.get("spill_bytes"):
            worst[row["kernel"]] = max(worst.get(row["kernel"], 0), row["spill_bytes"])
    return ", ".join(f"{size} B ({kernel})" for kernel, size in worst.items()) or "nothing"
