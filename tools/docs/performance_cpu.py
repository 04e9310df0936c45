"""The CPU's part of docs/reports/performance.md: our C++ kernels compared with vLLM's CPU_ATTN."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPORTS = Path(__file__).resolve().parents[2] / "docs" / "reports" / "bench-cpu"
TARGET = 1.0


def section(reports: Path = REPORTS) -> list[str]:
    """Lines of the section, of the newest report; none where there is no report."""
    documents = [(json.loads(path.read_text(encoding="utf-8")), path) for path in reports.glob("*.json")]
    if not documents:
        return []
    document, path = max(documents, key=lambda found: (found[0]["created"], found[1].name))
    rows: Sequence[dict[str, Any]] = document["rows"]
    before, after = document["load_average_before"][0], document["load_average_after"][0]
    reached = sum(row["ratio"] >= TARGET for row in rows)
    lines = [
        "## On the CPU, compared with vLLM's CPU_ATTN",
        "",
        f"`{document['command']}`, {document['created'][:10]}: {document['device']}, {document['threads']} threads, torch",
        f"{document['torch']}, vLLM {document['vllm']}; load {before:.1f} before and {after:.1f} after",
        f"([report](bench-cpu/{path.name})). Both in one process, in turn. The ratio is the median over pairs of",
        "their time over ours, above 1 ours is faster, with its quartiles. Both caches have heads before tokens in memory;",
        "“tokens first” is the time of our kernel over the same cache with tokens before heads, over ours.",
        "",
        f"Target: at least {TARGET:.1f} everywhere. Reached in {reached} of {len(rows)}.",
        "",
        "| workload | dtype | ours µs | CPU_ATTN µs | ratio | quartiles | tokens first | kernel |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            f"{row['ours_us']:.0f} | {row['peer_us']:.0f} | {row['ratio']:.2f} | "
            f"{row['ratio_low']:.2f}–{row['ratio_high']:.2f} | {row['tokens_first']:.2f}"
        )
        if row["note"]:  # a wrong answer was not timed
            cells = f"{row['note']} | | | | "
        lines.append(f"| {row['workload']} | {row['dtype']} | {cells} | {row['kernel']} |")
    return [*lines, ""]
