"""Every float32 case of the standard self-test, on our Triton kernels in the interpreter, summed in the order a GPU sums.

Usage: float32_cases.py [NAME] (a part of a case's name). Prints one JSON line a case: the rule's errors and bounds.

Triton's interpreter hands a `tl.dot` to the CPU's matrix library, whose vectorised sums are more exact than a GPU's. On a GPU
an exact float32 dot is one chain of fused multiply-adds along K; here it is computed as that, each step rounded once.
A process of its own, because TRITON_INTERPRET must be set before the kernels are imported.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
from triton.runtime import interpreter

from attnkit.backends import registry
from attnkit.hardware.device import Device
from attnkit.selftest.cases import cases
from attnkit.selftest.runner import full_name

BACKENDS = ("TRITON_ATTN", "TREE_ATTN", "DUAL_CHUNK_FLASH_ATTN", "DIFFERENTIAL_FLASH_ATTN")
_library_dot = interpreter.InterpreterBuilder.create_dot


def chained_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: int) -> Any:
    """d + a @ b, float32 operands one k after another. A product of two float32 is exact in float64."""
    if a.data.dtype != np.float32 or b.data.dtype != np.float32:
        return _library_dot(self, a, b, d, input_precision, max_num_imprecise_acc)
    total = d.data
    for k in range(a.data.shape[1]):
        step = np.multiply.outer(a.data[:, k].astype(np.float64), b.data[k].astype(np.float64))
        total = (step + total).astype(np.float32)
    return interpreter.TensorHandle(total, d.dtype.scalar)


def judged(name: str) -> Iterator[dict[str, Any]]:
    """A line for each float32 case of backend `name`."""
    from attnkit.selftest.baseline import baselines
    from attnkit.selftest.reference import reference
    from attnkit.selftest.tensors import build
    from attnkit.selftest.tolerance import judge

    backend = registry.get(name)
    cpu = Device(vendor="cpu", kind="cpu", name="CPU", arch="x86_64")
    capability = next(p.capability for p in backend.providers if "cpu" in p.capability.archs)
    for case in cases("standard", capability, cpu, None):
        if case.dtype != "float32" or not all(part in full_name(case) for part in sys.argv[1:]):
            continue
        call = build(case)
        got = backend.run(call)
        verdict = judge(got, reference(call), baselines(call), case.spec())
        yield {
            "backend": name,
            "case": full_name(case),
            "kernel": got.kernel,
            "reason": verdict.reason,
            "max_error": verdict.max_error,
            "max_bound": verdict.max_bound,
            "mean_error": verdict.mean_error,
            "mean_bound": verdict.mean_bound,
        }


def main() -> None:
    """All backends that take float32."""
    interpreter.InterpreterBuilder.create_dot = chained_dot
    for name in BACKENDS:
        for row in judged(name):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
