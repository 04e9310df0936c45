"""Launcher of the sm_90 MLA decode kernel: which calls it takes, how keys are split, and what the copy engine reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnkit.kernels.triton.hopper.prefill_plan import rows_of
from attnkit.kernels.triton.launch import Launch, Plan, batch_args, result_args
from attnkit.kernels.triton.merge_splits import part_outputs, with_merge
from attnkit.spec import MlaDecode

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

ROWS = 64
TILE = 64
LATENT = 512
ROPE = 64
MAX_SPLITS = 64

PROGRAM_TILES = 4
"""What a program costs beside its tiles, in tiles: fetching queries first and writing last, with idle tensor cores."""
MERGE_TILES = 6
"""What a second launch costs, in tiles."""


def supports(arch: str, call: MlaDecode) -> bool:
    """Whether the kernel computes this call."""
    query, cache = call.query, call.kv_cache
    size = cache.shape[1]
    return (
        arch == "sm_90"
        and query.element_size() == 2
        and cache.dtype == query.dtype
        and call.kv_lora_rank == LATENT
        and query.shape[2] == LATENT + ROPE
        and size >= 16
        and size & (size - 1) == 0
        and query.is_contiguous()
        and query.data_ptr() % 16 == 0
        and rows_of(cache.unsqueeze(2)) is not None
    )


def choose_splits(programs: int, units: int, max_seq_len: int) -> int:
    """Into how many runs the keys are cut, from host numbers alone: the power of two with the least time, counted in tiles.

    One program runs on a multiprocessor at a time, so the time is the number of rounds times that of a program.

    Args:
        programs: sequences * row tiles.
        units: multiprocessors of the device.
    """
    tiles = -(-max_seq_len // TILE)

    def cost(splits: int) -> int:
        rounds = -(-programs * splits // units)
        return rounds * (-(-tiles // splits) + PROGRAM_TILES) + (MERGE_TILES if splits > 1 else 0)

    choices = [1 << power for power in range(MAX_SPLITS.bit_length()) if 1 << power <= max(1, tiles // 2)]
    return min(choices, key=cost)


def plan(call: MlaDecode, out: Tensor, lse: Tensor | None, units: int, splits: int | None) -> Plan:
    """The launches for a call that `supports` accepts; see mla/plan.py."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from attnkit.kernels.triton.hopper.mla_kernel import hopper_mla_decode
    from attnkit.kernels.triton.tiles import LOG2E

    query, cache = call.query, call.kv_cache
    tokens, heads, width = query.shape
    num_seqs = call.seq_lens.shape[0]
    row_tiles = -(-call.max_query_len * heads // ROWS)

    def splits_for(units: int) -> int:
        return choose_splits(num_seqs * row_tiles, units, call.max_seq_len)

    if splits is None:
        splits = splits_for(units)
    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    chunk = min(cache.shape[1], TILE)
    rows = rows_of(cache.unsqueeze(2))
    assert rows is not None
    args = {
        **result_args(*part_outputs(out, lse, splits)),
        **batch_args(call),
        "query_map": TensorDescriptor(query, [tokens * heads, width], [width, 1], [ROWS, 64], layout),
        "cache_map": TensorDescriptor(cache, [rows.rows, rows.columns], [rows.stride, 1], [chunk, 64], layout),
        "splits": splits,
        "num_tokens": tokens,
        "scale": float(call.softmax_scale * call.kv_scale * LOG2E.value),
        "kv_scale": float(call.kv_scale),
        "block_rows": rows.block_rows,
        "HEADS": heads,
        "BLOCK_SIZE": cache.shape[1],
        "CHUNK": chunk,
        "SPLIT": splits > 1,
        "RETURN_LSE": lse is not None,
    }
    grid = (row_tiles, splits, num_seqs)
    decode = Launch(hopper_mla_decode, grid, args, num_warps=4, num_stages=1, splits_for=splits_for)
    return out, lse, *with_merge(decode, "gluon_hopper_mla_decode", out, lse, num_seqs, call.max_query_len)
