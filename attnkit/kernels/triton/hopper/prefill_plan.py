"""Launcher of the sm_90 prefill kernel: which calls it takes, and the two views of the cache that the copy engine reads.

The copy engine addresses a cache as a matrix of token rows. With strides (block, token, head) a row's number is

    block * (stride_block / stride_token) + head * (stride_head / stride_token) + slot     heads outside tokens (HND)
    block * (stride_block / stride_token) + slot,  column head * stride_head               tokens outside heads (NHD)

so that both common layouts work, and caches that keep keys and values of a block side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from attnkit.kernels.triton.launch import Launch, result_args

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


@dataclass(frozen=True)
class Rows:
    """A key or value cache as a matrix [rows, columns] of token rows."""

    rows: int
    columns: int
    stride: int
    block_rows: int
    head_rows: int
    head_columns: int


def rows_of(data: Tensor) -> Rows | None:
    """The matrix view of a cache [num_blocks, block_size, num_kv_heads, head_dim], or None where it has none.

    Packed keys [num_tokens, num_kv_heads, head_dim] are taken for one large block.
    """
    if data.dim() == 3:
        data = data.unsqueeze(0)
    blocks, size, heads, width = data.shape
    block, token, head, one = data.stride()
    if one != 1 or token <= 0 or block % token or token % 8 or data.data_ptr() % 16:
        return None
    if heads == 1 or head % token == 0:
        head_rows, head_columns = (head // token if heads > 1 else 0), 0
    elif head * heads <= token and head % 8 == 0:
        head_rows, head_columns = 0, head
    else:
        return None
    rows = (blocks - 1) * (block // token) + (heads - 1) * head_rows + size
    columns = (heads - 1) * head_columns + width
    if not 1 <= rows < 1 << 31:  # the copy engine describes no empty matrix
        return None
    return Rows(rows, columns, token, block // token, head_rows, head_columns)


GROUPS = 2
"""Warpgroups that multiply, 64 query rows each."""

BLOCK_N = 128
RING_BYTES = 64 << 10
"""Shared memory for key tiles, and as much again for value tiles."""

PREFETCH_FROM = 64
"""Tokens a cache block from which the next tile's queries are loaded early. With smaller blocks, whose many small copies keep
the copy engine busy, that measured slower (16 x 1024 on an H100: 393 TFLOP/s against 379 with blocks of 128, 315 against 350
with blocks of 16)."""


def supports(arch: str, common: dict[str, Any]) -> bool:
    """Whether the kernel computes this call.

    Args:
        common: the arguments that the planners of paged/plan.py share among kernels.
    """
    query, key, value = common["query"], common["key"], common["value"]
    size = common["BLOCK_SIZE"]
    return (
        arch == "sm_90"
        and query.element_size() == 2
        and key.dtype == query.dtype == value.dtype
        and common["HEAD_DIM"] == common["HEAD_DIM_V"]
        and common["HEAD_DIM"] in (64, 128)
        and (common["table"] is None or (size >= 16 and size & (size - 1) == 0))
        and not (common["SOFTCAP"] or common["ALIBI"] or common["SINKS"] or common["TREE"] or common["FP8"])
        and rows_of(key) is not None
        and rows_of(value) is not None
    )


def plan(
    out: Tensor,
    lse: Tensor | None,
    common: dict[str, Any],
    units: int,
    num_seqs: int,
    kv_heads: int,
    shortest: int,
) -> Launch:
    """The launch of a call that `supports` accepts. Without a table: packed keys, `common["key_start_loc"]` says where."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from attnkit.kernels.triton.hopper.prefill_kernel import LOG2E, hopper_prefill

    paged = common["table"] is not None
    chunk = min(common["BLOCK_SIZE"], BLOCK_N) if paged else BLOCK_N
    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)

    def seen(data: Tensor) -> tuple[Rows, TensorDescriptor]:
        rows = rows_of(data)
        assert rows is not None
        return rows, TensorDescriptor(data, [rows.rows, rows.columns], [rows.stride, 1], [chunk, 64], layout)

    keys, key_map = seen(common["key"])
    values, value_map = seen(common["value"])
    tiles = out.shape[0] * common["GROUP"] // (64 * GROUPS) + num_seqs
    items = tiles * kv_heads
    same = (
        "query", "table", "seq_lens", "query_start_loc", "v_scale", "window_left", "window_right",
        "stride_q_token", "stride_q_head", "stride_lens", "stride_starts", "stride_table", "stride_page",
        "GROUP", "BLOCK_SIZE", "HAS_LEFT", "HAS_RIGHT",
    )  # fmt: skip
    args = {
        **{name: common[name] for name in same},
        **result_args(out, lse),
        "key_start_loc": None if paged else common["key_start_loc"],
        "stride_key_starts": 1 if paged else common["stride_key_starts"],
        "key_map": key_map,
        "value_map": value_map,
        "taken": torch.zeros(1, dtype=torch.int32, device=out.device),
        "tiles": tiles,
        "items": items,
        "num_seqs": num_seqs,
        "scale": common["scale"] * LOG2E.value,
        "shortest": shortest,
        "heads": kv_heads * common["GROUP"],
        "key_block_rows": keys.block_rows if paged else 1,
        "key_head_rows": keys.head_rows,
        "key_head_columns": keys.head_columns,
        "value_block_rows": values.block_rows if paged else 1,
        "value_head_rows": values.head_rows,
        "value_head_columns": values.head_columns,
        "D": common["HEAD_DIM"],
        "BLOCK_N": BLOCK_N,
        "CHUNK": chunk,
        "STAGES": RING_BYTES // (BLOCK_N * common["HEAD_DIM"] * 2),
        "RETURN_LSE": lse is not None,
        "GROUPS": GROUPS,
        "PREFETCH": chunk >= PREFETCH_FROM,
        "PAGED": paged,
    }
    return Launch(hopper_prefill, (min(units, items),), args, num_warps=4, num_stages=1)
