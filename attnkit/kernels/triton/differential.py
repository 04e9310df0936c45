# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Differential attention on the paged kernels.

    out = (1 - lambda_init) * RMSNorm((softmax(c q1 k1^T) - lambda softmax(c q2 k2^T)) [v1; v2])

Heads lie in pairs, so first and second heads are strided views of query and key cache, and [v1; v2] is the value cache seen
with half as many heads of twice the width: two runs of the paged kernels over views, no copy. Their results stay float32
until the difference is taken. (arXiv 2410.05258)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from attnkit.errors import UnsupportedError
from attnkit.kernels.triton.attention import plan_paged
from attnkit.kernels.triton.launch import Launch, padded, run_all
from attnkit.spec import DifferentialAttention, PagedAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


@triton.jit
def differential_combine(
    out, first, second, norm_weight, lambda_full, lambda_init, eps, stride_o_token, stride_o_head,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """One (token, pair): first, second [num_tokens, pairs, WIDTH] float32, contiguous."""
    token = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(1)
    d = tl.arange(0, PADDED)
    at = (token * tl.num_programs(1) + pair) * WIDTH + d
    x = tl.load(first + at, mask=d < WIDTH, other=0.0) - lambda_full * tl.load(second + at, mask=d < WIDTH, other=0.0)
    y = x / tl.sqrt(tl.sum(x * x, 0) / WIDTH + eps) * (1.0 - lambda_init)
    if WEIGHTED:
        y *= tl.load(norm_weight + d, mask=d < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + token * stride_o_token + pair * stride_o_head + d, y.to(out.dtype.element_ty), mask=d < WIDTH)


def half(call: PagedAttention, which: int) -> PagedAttention:
    """The paged call of the first (0) or second (1) heads of all pairs over the paired values, with a float32 output.

    Raises:
        UnsupportedError: the value cache cannot be seen as pairs without a copy.
    """
    cache = call.value_cache
    blocks, size, heads, width = cache.shape
    if heads % 2 or cache.stride(2) != width or cache.stride(3) != 1:
        raise UnsupportedError(
            f"differential attention needs value heads in adjacent pairs; shape {tuple(cache.shape)}, strides {cache.stride()}"
        )
    pairs = cache.as_strided(
        (blocks, size, heads // 2, 2 * width), (cache.stride(0), cache.stride(1), 2 * width, 1), cache.storage_offset()
    )
    query = call.query[:, which::2]
    out = torch.empty(query.shape[0], query.shape[1], 2 * width, dtype=torch.float32, device=query.device)
    return replace(call, query=query, key_cache=call.key_cache[:, :, which::2], value_cache=pairs, out=out, return_lse=False)


def plan(call: DifferentialAttention, *, arch: str | None = None) -> tuple[Tensor, list[Launch], str]:
    """The launches of `run`, and where the result will be."""
    paged = call.paged
    (
        first,
        launches_1,
        name,
    ) = _planned(half(paged, 0), arch)
    second, launches_2, _ = _planned(half(paged, 1), arch)
    tokens, pairs, width = first.shape
    out = paged.out
    if out is None:
        out = torch.empty(tokens, pairs, width, dtype=paged.query.dtype, device=paged.query.device)
    if tokens == 0:
        return out, [], "nothing"
    weight = call.norm_weight
    args = {
        "out": out,
        "first": first,
        "second": second,
        "norm_weight": None if weight is None else weight.contiguous(),
        "lambda_full": float(call.lambda_full),
        "lambda_init": float(call.lambda_init),
        "eps": float(call.eps),
        "stride_o_token": out.stride(0),
        "stride_o_head": out.stride(1),
        "WIDTH": width,
        "PADDED": padded(width),
        "WEIGHTED": weight is not None,
    }
    combine = Launch(differential_combine, (tokens, pairs), args, 4, 1)
    return out, [*launches_1, *launches_2, combine], f"2*({name})+triton_differential_combine"


def _planned(call: PagedAttention, arch: str | None) -> tuple[Tensor, list[Launch], str]:
    out, _, launches, name = plan_paged(call, arch=arch)
    return out, launches, name


def run(call: DifferentialAttention, *, arch: str | None = None) -> tuple[Tensor, str]:
    """Compute `call`.

    Returns:
        out [num_tokens, pairs, 2 * head_dim] in the query's dtype, and the kernels that ran.
    """
    out, launches, name = plan(call, arch=arch)
    run_all(launches)
    return out, name
