# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Join the partial results of a split-KV kernel by their log-sum-exp.

L = log2 sum_s 2^lse_s ;  out = sum_s 2^(lse_s - L) out_s
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from attnkit.kernels.triton.launch import Launch, in_parts, padded
from attnkit.kernels.triton.tiles import LN2

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


@triton.jit(do_not_specialize=["num_tokens", "longest"], do_not_specialize_on_alignment=["query_start_loc"])
def merge_splits(
    out, lse, part_out, part_lse, query_start_loc,
    num_tokens, longest, stride_starts, stride_o_token, stride_o_head,
    HEAD_DIM_V: tl.constexpr, BLOCK_DV: tl.constexpr, SPLITS: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
    TOKENS: tl.constexpr, RETURN_LSE: tl.constexpr,
):  # fmt: skip
    """One (token, head). part_out [SPLITS, num_tokens, heads, HEAD_DIM_V], part_lse [SPLITS, num_tokens, heads] in log2.

    program 0: TOKENS candidate tokens a sequence; sequences with more than `longest` new tokens are not ours.
    """
    seq = tl.program_id(0) // TOKENS
    node = tl.program_id(0) % TOKENS
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    at = query_start_loc + seq.to(tl.int64) * stride_starts
    query_start = tl.load(at)
    query_len = tl.load(at + stride_starts) - query_start
    if node >= query_len or query_len > longest:
        return
    token = (query_start + node).to(tl.int64)

    split = tl.arange(0, BLOCK_SPLITS).to(tl.int64)
    row = (split * num_tokens + token) * num_heads + head
    part = tl.load(part_lse + row, mask=split < SPLITS, other=float("-inf"))
    top = tl.max(part, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp2(part - top)
    total = tl.sum(weight, 0)
    dv = tl.arange(0, BLOCK_DV)
    # A split without keys wrote no output: what lies there may be NaN and must not be read.
    parts = tl.load(
        part_out + row[:, None] * HEAD_DIM_V + dv[None, :],
        mask=(weight > 0.0)[:, None] & (dv[None, :] < HEAD_DIM_V),
        other=0.0,
    )
    joined = tl.sum(parts * weight[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    to = out + token * stride_o_token + head.to(tl.int64) * stride_o_head + dv
    tl.store(to, joined.to(out.dtype.element_ty), mask=dv < HEAD_DIM_V)
    if RETURN_LSE:
        tl.store(lse + token * num_heads + head, (top + tl.log2(total)) * LN2)


def part_outputs(out: Tensor, lse: Tensor | None, splits: int) -> tuple[Tensor, Tensor | None]:
    """Where a kernel writes: `out` and `lse`, or, of several splits, float32 workspace with the splits outermost."""
    if splits == 1:
        return out, lse
    shape = (splits, *out.shape)
    part_out = torch.empty(shape, dtype=torch.float32, device=out.device)
    return part_out, torch.empty(shape[:3], dtype=torch.float32, device=out.device)


def with_merge(
    decode: Launch, name: str, out: Tensor, lse: Tensor | None, num_seqs: int, longest: int
) -> tuple[list[Launch], str]:
    """A launch that wrote to `part_outputs`, with `merge_splits` behind it where there are several; and the name of both."""
    part_out = decode.args["out"]
    if part_out.dim() == out.dim():
        return in_parts(decode), name
    splits, tokens, heads, head_dim_v = part_out.shape
    args = {
        "out": out,
        "lse": lse,
        "part_out": part_out,
        "part_lse": decode.args["lse"],
        "query_start_loc": decode.args["query_start_loc"],
        "num_tokens": tokens,
        "longest": longest,
        "stride_starts": decode.args["stride_starts"],
        "stride_o_token": out.stride(0),
        "stride_o_head": out.stride(1),
        "HEAD_DIM_V": head_dim_v,
        "BLOCK_DV": padded(head_dim_v),
        "SPLITS": splits,
        "BLOCK_SPLITS": 1 << (splits - 1).bit_length(),
        "TOKENS": longest,
        "RETURN_LSE": lse is not None,
    }
    return [*in_parts(decode), Launch(merge_splits, (num_seqs * longest, heads), args, 4, 1)], f"{name}_split"
