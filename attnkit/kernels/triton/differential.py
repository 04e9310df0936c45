# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Differential attention on the paged kernels.

    out = (1 - lambda_init) * RMSNorm((softmax(c q1 k1^T) - lambda softmax(c q2 k2^T)) [v1; v2])

Heads lie in pairs, so first and second heads are strided views of query and key cache, and [v1; v2] is the value cache seen
with half as many heads of twice the width: two runs of the paged kernels over views, no copy. A decode is bound by reading the
cache, and two runs read the values twice. There one run does, over pairs of keys too: [q1; 0] . [k1; k2] = q1 . k1, and the
products with zero cost nothing that a decode waits for. Results stay float32 until the difference is taken. (arXiv 2410.05258)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from attnkit.errors import UnsupportedError
from attnkit.kernels.triton.launch import Launch, padded, run_all, step
from attnkit.kernels.triton.paged.plan import plan_paged
from attnkit.kernels.triton.paged.route import MAX_DECODE_ROWS
from attnkit.spec import DifferentialAttention, PagedAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


@triton.jit
def differential_spread(out, query, stride_q_token, stride_q_head, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """One (token, head): out [num_tokens, heads, 2 * WIDTH] = [q; 0] for even heads, [0; q] for odd ones."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, PADDED)
    column = d - head % 2 * WIDTH
    row = query + token * stride_q_token + head.to(tl.int64) * stride_q_head
    x = tl.load(row + column, mask=(column >= 0) & (column < WIDTH), other=0.0)
    tl.store(out + (token * tl.num_programs(1) + head) * 2 * WIDTH + d, x, mask=d < 2 * WIDTH)


@triton.jit
def differential_combine(
    out, first, second, norm_weight, lambda_full, lambda_init, eps, stride_o_token, stride_o_head, stride_token, stride_pair,
    stride_weight,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """One (token, pair): first, second [num_tokens, pairs, WIDTH] float32, of the same strides."""
    token = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(1)
    d = tl.arange(0, PADDED)
    at = token * stride_token + pair * stride_pair + d
    x = tl.load(first + at, mask=d < WIDTH, other=0.0) - lambda_full * tl.load(second + at, mask=d < WIDTH, other=0.0)
    y = x / tl.sqrt(tl.sum(x * x, 0) / WIDTH + eps) * (1.0 - lambda_init)
    if WEIGHTED:
        y *= tl.load(norm_weight + d * stride_weight, mask=d < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + token * stride_o_token + pair.to(tl.int64) * stride_o_head + d, y.to(out.dtype.element_ty), mask=d < WIDTH)


def paired(cache: Tensor) -> Tensor | None:
    """A cache [blocks, size, heads, width] seen as [blocks, size, heads // 2, 2 * width], or None where that takes a copy."""
    blocks, size, heads, width = cache.shape
    if heads % 2 or cache.stride(2) != width or cache.stride(3) != 1:
        return None
    strides = (cache.stride(0), cache.stride(1), 2 * width, 1)
    return cache.as_strided((blocks, size, heads // 2, 2 * width), strides, cache.storage_offset())


def one_pass(call: PagedAttention) -> PagedAttention | None:
    """The paged call of first and second heads at once, with room for the spread queries and a float32 output.

    None where it is no decode, or key or value heads cannot be seen as pairs without a copy.
    """
    tokens, heads, width = call.query.shape
    key, value = paired(call.key_cache), paired(call.value_cache)
    decode = tokens == call.seq_lens.shape[0] * call.max_query_len or call.max_query_len == 1
    if key is None or value is None or not decode or call.max_query_len * (heads // key.shape[2]) > MAX_DECODE_ROWS:
        return None
    query = torch.empty(tokens, heads, 2 * width, dtype=call.query.dtype, device=call.query.device)
    out = torch.empty(tokens, heads, value.shape[3], dtype=torch.float32, device=call.query.device)
    return replace(call, query=query, key_cache=key, value_cache=value, out=out, return_lse=False)


def half(call: PagedAttention, which: int) -> PagedAttention:
    """The paged call of the first (0) or second (1) heads of all pairs over the paired values, with a float32 output.

    Raises:
        UnsupportedError: the value cache cannot be seen as pairs without a copy.
    """
    pairs = paired(call.value_cache)
    if pairs is None:
        shape, strides = tuple(call.value_cache.shape), call.value_cache.stride()
        raise UnsupportedError(f"differential attention needs value heads in adjacent pairs; shape {shape}, strides {strides}")
    query = call.query[:, which::2]
    out = torch.empty(query.shape[0], query.shape[1], pairs.shape[3], dtype=torch.float32, device=query.device)
    return replace(call, query=query, key_cache=call.key_cache[:, :, which::2], value_cache=pairs, out=out, return_lse=False)


def plan(
    call: DifferentialAttention, *, arch: str | None = None, splits: int | None = None
) -> tuple[Tensor, list[Launch], str]:
    """The launches of `run`, and where the result will be; `splits` overrides the choice of tile_sizes.py, for decodes."""
    paged = call.paged
    once = one_pass(paged)
    if once is not None:
        both, _, launches, name = plan_paged(once, arch=arch, splits=splits)
        first, second = both[:, 0::2], both[:, 1::2]
        launches = [_spread(once.query, paged.query), *launches] if launches else []
        name = f"triton_differential_spread+{name}"
    else:
        first, _, launches, name = plan_paged(half(paged, 0), arch=arch, splits=splits)
        second, _, more, _ = plan_paged(half(paged, 1), arch=arch, splits=splits)
        launches = [*launches, *more]
        name = f"2*({name})"
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
        "norm_weight": weight,
        "stride_weight": step(weight),
        "lambda_full": float(call.lambda_full),
        "lambda_init": float(call.lambda_init),
        "eps": float(call.eps),
        "stride_o_token": out.stride(0),
        "stride_o_head": out.stride(1),
        "stride_token": first.stride(0),
        "stride_pair": first.stride(1),
        "WIDTH": width,
        "PADDED": padded(width),
        "WEIGHTED": weight is not None,
    }
    combine = Launch(differential_combine, (tokens, pairs), args, 4, 1)
    return out, [*launches, combine], f"{name}+triton_differential_combine"


def _spread(wide: Tensor, query: Tensor) -> Launch:
    tokens, heads, width = query.shape
    args = {
        "out": wide,
        "query": query,
        "stride_q_token": query.stride(0),
        "stride_q_head": query.stride(1),
        "WIDTH": width,
        "PADDED": padded(2 * width),
    }
    return Launch(differential_spread, (tokens, heads), args, 1, 1)


def run(call: DifferentialAttention, *, arch: str | None = None) -> tuple[Tensor, str]:
    """Compute `call`.

    Returns:
        out [num_tokens, pairs, 2 * head_dim] in the query's dtype, and the kernels that ran.
    """
    out, launches, name = plan(call, arch=arch)
    run_all(launches)
    return out, name
