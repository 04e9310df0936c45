# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Write new keys and values into the paged cache.

    cache[slot // block_size, slot % block_size, head] = row / scale        for slot = slot_mapping[token] >= 0

float8 caches are saturated to the format's range, as vLLM's do: an overflow becomes the largest number and not NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from attnkit.errors import UnsupportedError
from attnkit.kernels.triton.launch import Launch, padded, require_rows, run_all, step

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


@triton.jit
def round_to_fp8_bits(x, MANTISSA: tl.constexpr, BIAS: tl.constexpr, LARGEST: tl.constexpr, FNUZ: tl.constexpr):
    """float32 to the bits of a float8 with MANTISSA fraction bits, round to nearest even, saturating; NaN stays NaN.

    Done on integers, since not every target has the conversion. Numbers below the smallest normal are scaled so that adding
    one half unit of float32's last place rounds them to a multiple of the smallest subnormal.
    """
    bits = x.to(tl.uint32, bitcast=True)
    sign = (bits >> 31) << 7
    magnitude = tl.minimum(tl.abs(x), LARGEST)
    # normal: round the fraction in place, then move the exponent's bias
    mag = magnitude.to(tl.uint32, bitcast=True)
    drop: tl.constexpr = 23 - MANTISSA
    odd = (mag >> drop) & 1
    rounded = (mag + ((1 << (drop - 1)) - 1) + odd) >> drop
    normal = rounded - ((127 - BIAS) << MANTISSA)
    # subnormal: magnitude / 2^(1 - BIAS - MANTISSA) is the integer to store; 2^23 added and subtracted rounds it to even
    steps = magnitude * (2.0 ** (BIAS - 1 + MANTISSA))
    tiny = ((steps + 8388608.0) - 8388608.0).to(tl.uint32)
    small = magnitude < 2.0 ** (1 - BIAS)
    code = tl.where(small, tiny, normal)
    nan = x != x
    if FNUZ:
        # no negative zero: that code is NaN
        code = tl.where(code == 0, 0, code | sign)
        code = tl.where(nan, 0x80, code)
    else:
        code = tl.where(nan, 0x7F, code) | sign
    return code.to(tl.uint8)


@triton.jit(do_not_specialize_on_alignment=["slot_mapping"])
def cache_write(
    rows, cache, slot_mapping, scale,
    stride_slot, stride_row_token, stride_row_head, stride_block, stride_token, stride_head,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr,
    LARGEST: tl.constexpr, FNUZ: tl.constexpr,
):  # fmt: skip
    """One (token, head): rows [num_tokens, heads, WIDTH] into cache; MANTISSA > 0 quantises to float8 bits."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slot_mapping + token * stride_slot)
    if slot < 0:
        return
    d = tl.arange(0, PADDED)
    x = tl.load(rows + token * stride_row_token + head.to(tl.int64) * stride_row_head + d, mask=d < WIDTH, other=0.0)
    if MANTISSA > 0:
        y = round_to_fp8_bits(x.to(tl.float32) / scale, MANTISSA, BIAS, LARGEST, FNUZ)
    else:
        y = x.to(cache.dtype.element_ty)
    block = (slot // BLOCK_SIZE).to(tl.int64)
    place = (slot % BLOCK_SIZE).to(tl.int64)
    tl.store(cache + block * stride_block + place * stride_token + head.to(tl.int64) * stride_head + d, y, mask=d < WIDTH)


_FORMATS: dict[str, tuple[int, int, float, bool]] = {
    "float8_e4m3fn": (3, 7, 448.0, False),
    "float8_e4m3fnuz": (3, 8, 240.0, True),
    "float8_e5m2": (2, 15, 57344.0, False),
    "float8_e5m2fnuz": (2, 16, 57344.0, True),
}
"""Fraction bits, exponent bias, largest number, and whether the format has no negative zero."""


def write_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> str:
    """See `attnkit.kernels.cache.write_kv_cache`; the caches are of the dtype of key or float8."""
    run_all([plan_write(key, key_cache, slot_mapping, k_scale), plan_write(value, value_cache, slot_mapping, v_scale)])
    return "triton_cache_write"


def plan_write(rows: Tensor, cache: Tensor, slot_mapping: Tensor, scale: float) -> Launch:
    """The launch that stores `rows`."""
    require_rows(rows=rows, cache=cache)
    if slot_mapping.dtype not in (torch.int64, torch.int32):
        raise UnsupportedError(f"slot_mapping must be int64 or int32, not {slot_mapping.dtype}")
    mantissa, bias, largest, fnuz = _FORMATS.get(str(cache.dtype).removeprefix("torch."), (0, 0, 0.0, False))
    tokens, heads, width = rows.shape
    args = {
        "rows": rows,
        "cache": cache.view(torch.uint8) if mantissa else cache,
        "slot_mapping": slot_mapping,
        "scale": float(scale),
        "stride_slot": step(slot_mapping),
        "stride_row_token": rows.stride(0),
        "stride_row_head": rows.stride(1),
        "stride_block": cache.stride(0),
        "stride_token": cache.stride(1),
        "stride_head": cache.stride(2),
        "WIDTH": width,
        "PADDED": padded(width),
        "BLOCK_SIZE": cache.shape[1],
        "MANTISSA": mantissa,
        "BIAS": bias,
        "LARGEST": largest,
        "FNUZ": fnuz,
    }
    return Launch(cache_write, (tokens, heads), args, 1, 1)
