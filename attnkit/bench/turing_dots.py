# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Dot products in every form that Turing's code generation rewrites, held against exact results.

Small integers make each form exact: a fragment in the wrong register shows as a wrong number, not as a rounding error.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def dot(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr):
    """c [M, N] = a [M, K] @ b [K, N]."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(c + m[:, None] * N + n[None, :], tl.dot(x, y, out_dtype=ACC))


FORMS = {
    "fp16 into fp32": (torch.float16, tl.float32, torch.float32, 8),
    "fp16 into fp16": (torch.float16, tl.float16, torch.float16, 2),
    "int8 into int32": (torch.int8, tl.int32, torch.int32, 100),
}
"""Operand, accumulator, result and largest entry; the entries keep every partial sum exact in the accumulator."""

SHAPES = ((16, 16, 32), (64, 64, 64), (128, 64, 128))


def check_dots() -> list[dict[str, Any]]:
    """One result a form and shape: {"form", "shape", "ok", "wrong": number of wrong entries}."""
    results = []
    for form, (operand, acc, out, largest) in FORMS.items():
        for m, n, k in SHAPES:
            a = torch.randint(-largest, largest + 1, (m, k), device="cuda").to(operand)
            b = torch.randint(-largest, largest + 1, (k, n), device="cuda").to(operand)
            c = torch.full((m, n), -1, dtype=out, device="cuda")
            dot[(1,)](a, b, c, m, n, k, acc)
            wrong = int((c.double() != a.double() @ b.double()).sum())
            results.append({"form": form, "shape": [m, n, k], "ok": wrong == 0, "wrong": wrong})
            print(f"dot {form} {m}x{n}x{k}: {'exact' if wrong == 0 else f'{wrong} wrong entries'}")
    return results
