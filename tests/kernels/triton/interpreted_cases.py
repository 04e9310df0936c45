"""Runs the Triton kernels in Triton's interpreter and prints one JSON line a case: kernel, errors and bounds.

A process of its own, because TRITON_INTERPRET must be set before the kernels are imported.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

sys.path.append(str(Path(__file__).resolve().parents[3]))

import torch

from attnkit.backends import registry
from attnkit.selftest.reference import reference
from attnkit.spec import (
    AttentionOutput,
    DifferentialAttention,
    DualChunkAttention,
    MlaDecode,
    PagedAttention,
    Softmax,
    TreeAttention,
    VarlenAttention,
)
from tools.kernels.interpreter import lean

CASES: dict[str, Callable[[], dict[str, Any]]] = {}
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def paged(
    new: list[int], lens: list[int], heads=4, kv_heads=2, dim=64, block=16, dtype=F16, cache=None, width=None, **softmax
) -> PagedAttention:
    """A batch over a permuted cache whose unused slots are NaN."""
    most = max(1, *(-(-length // block) for length in lens))
    blocks = len(lens) * most + 3
    table = torch.randperm(blocks)[: len(lens) * most].int().reshape(len(lens), most)
    key = torch.full((blocks, block, kv_heads, dim), float("nan"))
    value = torch.full((blocks, block, kv_heads, width or dim), float("nan"))
    for seq, length in enumerate(lens):
        for j in range(length):
            key[table[seq, j // block], j % block] = torch.randn(kv_heads, dim)
            value[table[seq, j // block], j % block] = torch.randn(kv_heads, width or dim)
    query = torch.randn(sum(new), heads, dim).to(dtype)
    return PagedAttention(
        query=query,
        key_cache=key.to(cache or dtype),
        value_cache=value.to(cache or dtype),
        block_table=table,
        seq_lens=torch.tensor(lens, dtype=torch.int32),
        query_start_loc=torch.tensor([0, *itertools.accumulate(new)], dtype=torch.int32),
        max_query_len=max(new),
        max_seq_len=max(lens),
        softmax=Softmax(dim**-0.5, **softmax),
        k_scale=0.5 if cache else 1.0,
        v_scale=2.0 if cache else 1.0,
        return_lse=True,
        out=torch.full((sum(new), heads, width or dim), float("nan"), dtype=dtype),
    )


def case(
    name: str, backend: Any, make: Callable[[], Any], loose: float = 1.0, spoil: Callable[[Any], Any] | None = None
) -> None:
    """Register: run `make()` (or what `spoil` makes of it) and judge it against float64."""

    def run() -> dict[str, Any]:
        call = make()
        exact = reference(call)
        runner = registry.get(backend) if isinstance(backend, str) else backend
        got = runner.run(spoil(call) if spoil else call)
        eps = torch.finfo(got.out.dtype).eps
        error = (got.out.double() - exact.out).abs()
        row = {
            "kernel": got.kernel,
            "error": error.max().item(),
            "bound": 2 * loose * eps * exact.out.abs().max().item(),
            "mean_error": error.mean().item(),
            "mean_bound": loose * eps * exact.out.abs().mean().item(),
        }
        if exact.lse is not None:
            finite = torch.isfinite(exact.lse)
            row["same_infinities"] = bool((torch.isfinite(got.lse) == finite).all())
            row["lse_error"] = (got.lse.double() - exact.lse)[finite].abs().max().item()
            row["lse_bound"] = (eps if isinstance(call, DualChunkAttention) else 4e-6) * exact.lse[finite].abs().max().item()
        return row

    CASES[name] = run


MIX, MIX_LENS = [1, 40, 0, 2, 1], [50, 90, 0, 7, 130]
case("prefill", "TRITON_ATTN", lambda: paged([70], [70]))
case("prefill-odd-lengths", "TRITON_ATTN", lambda: paged([33, 63, 1], [33, 63, 1]))
case("chunked", "TRITON_ATTN", lambda: paged([40, 40], [90, 140]))
case("decode", "TRITON_ATTN", lambda: paged([1, 1, 1], [1, 63, 60]))
case("decode-split", "TRITON_ATTN", lambda: paged([1, 1], [300, 5]))
case("speculative", "TRITON_ATTN", lambda: paged([3, 3], [50, 300], heads=8))
case("mixed", "TRITON_ATTN", lambda: paged(MIX, MIX_LENS))
case("mixed-bf16", "TRITON_ATTN", lambda: paged(MIX, MIX_LENS, dtype=BF16))
case("mixed-fp32", "TRITON_ATTN", lambda: paged(MIX, MIX_LENS, dtype=F32), loose=8)
for dim in (16, 80, 96, 128, 256):
    case(f"dim-{dim}", "TRITON_ATTN", lambda dim=dim: paged([1, 35], [50, 60], dim=dim))
for block in (32, 64, 128):
    case(f"block-{block}", "TRITON_ATTN", lambda block=block: paged([1, 35], [150, 60], block=block))
case("mha", "TRITON_ATTN", lambda: paged([1, 35], [50, 60], heads=3, kv_heads=3))
case("gqa-7", "TRITON_ATTN", lambda: paged([1, 35], [50, 60], heads=7, kv_heads=1))
case("mqa-32", "TRITON_ATTN", lambda: paged([1, 1], [50, 200], heads=32, kv_heads=1))
case("non-causal", "TRITON_ATTN", lambda: paged(MIX, MIX_LENS, causal=False))
case("window", "TRITON_ATTN", lambda: paged(MIX, MIX_LENS, window=(20, -1)))
case("window-both", "TRITON_ATTN", lambda: paged(MIX, MIX_LENS, window=(20, 5), causal=False))
case("window-decode", "TRITON_ATTN", lambda: paged([1, 1], [300, 9], window=(70, 0)))
case("softcap", "TRITON_ATTN", lambda: paged(MIX, MIX_LENS, softcap=5.0), loose=1.5)
case("alibi", "TRITON_ATTN", lambda: paged(MIX, MIX_LENS, alibi_slopes=torch.tensor([0.5, 0.25, 0.1, 0.05])))
case("sinks", "TRITON_ATTN", lambda: paged(MIX, MIX_LENS, sinks=torch.tensor([1.0, -2.0, 0.0, 5.0])))
case("sinks-split", "TRITON_ATTN", lambda: paged([1, 1], [300, 5], sinks=torch.tensor([1.0, -2.0, 0.0, 5.0])))
for fp8 in ("float8_e4m3fn", "float8_e5m2"):
    case(f"cache-{fp8}", "TRITON_ATTN", lambda fp8=fp8: paged(MIX, MIX_LENS, cache=getattr(torch, fp8)), loose=2)


def large_scores() -> PagedAttention:
    call = paged([1, 35], [50, 60])
    return replace(call, query=call.query * 40)


def strided() -> PagedAttention:
    """Keys and values as the two halves of one cache, as vLLM lays them out."""
    call = paged(MIX, MIX_LENS)
    both = torch.cat((call.key_cache, call.value_cache), dim=-1)
    return replace(call, key_cache=both[..., :64], value_cache=both[..., 64:])


def varlen(causal: bool) -> VarlenAttention:
    new, keys = [40, 0, 1, 33], [70, 5, 1, 33]
    return VarlenAttention(
        query=torch.randn(sum(new), 4, 64, dtype=F16),
        key=torch.randn(sum(keys), 2, 64, dtype=F16),
        value=torch.randn(sum(keys), 2, 64, dtype=F16),
        query_start_loc=torch.tensor([0, *itertools.accumulate(new)], dtype=torch.int32),
        key_start_loc=torch.tensor([0, *itertools.accumulate(keys)], dtype=torch.int32),
        max_query_len=40,
        max_seq_len=70,
        softmax=Softmax(0.125, causal=causal),
        return_lse=True,
        out=torch.full((sum(new), 4, 64), float("nan"), dtype=F16),
    )


def mla(new: list[int], lens: list[int], heads=16, latent=64, rope=16, dtype=F16, cache=None) -> MlaDecode:
    batch = paged(new, lens, heads=1, kv_heads=1, dim=latent + rope, dtype=dtype, cache=cache)
    return MlaDecode(
        query=torch.randn(sum(new), heads, latent + rope).to(dtype),
        kv_cache=batch.key_cache.squeeze(2),
        block_table=batch.block_table,
        seq_lens=batch.seq_lens,
        query_start_loc=batch.query_start_loc,
        max_query_len=max(new),
        max_seq_len=max(lens),
        kv_lora_rank=latent,
        softmax_scale=0.1,
        kv_scale=0.5 if cache else 1.0,
        return_lse=True,
        out=torch.full((sum(new), heads, latent), float("nan"), dtype=dtype),
    )


def tree(heads: int, kv_heads: int, lens: tuple[int, ...] = (100, 50)) -> TreeAttention:
    """A binary tree of nine nodes in topological order."""
    mask = torch.eye(9, dtype=torch.bool)
    for node in range(1, 9):
        mask[node] |= mask[(node - 1) // 2]
    return TreeAttention(paged([9] * len(lens), list(lens), heads=heads, kv_heads=kv_heads), mask)


def unequal_trees() -> TreeAttention:
    """Two trees of nine nodes, of which the second batch entry has only the first four."""
    call = tree(16, 1)
    return replace(call, paged=paged([9, 4], [100, 50], heads=16, kv_heads=1))


def dual(
    new: list[int], lens: list[int], chunk: int, local: int, original: int | None = None, rows: int = 0, **options
) -> DualChunkAttention:
    angle = torch.arange(rows or 2 * chunk + 2)[:, None] * 10000.0 ** (-torch.arange(32) / 32)
    return DualChunkAttention(paged(new, lens, **options), chunk, local, angle.cos(), angle.sin(), original)


class Composed:
    """Dual chunk attention out of three ordinary attentions, which the backend takes on sm_90 alone."""

    def __init__(self, most_bytes: int = 1 << 30) -> None:
        self.most_bytes = most_bytes

    def run(self, call: DualChunkAttention) -> AttentionOutput:
        from attnkit.kernels.triton.dual_chunk import composed_plan as composed
        from attnkit.kernels.triton.dual_chunk import plan as dual_chunk

        composed.MOST_BYTES = self.most_bytes
        return AttentionOutput(*dual_chunk.run(call, composed=True))


def differential(new: list[int], lens: list[int], weight: bool, cache=None) -> DifferentialAttention:
    batch = replace(paged(new, lens, heads=8, kv_heads=4, dim=32, cache=cache), return_lse=False, out=None)
    out = torch.full((sum(new), 4, 64), float("nan"), dtype=F16)
    return DifferentialAttention(replace(batch, out=out), 0.5, 0.3, torch.randn(64) if weight else None)


class Hopper:
    """Our kernels as they are chosen for sm_90; of decodes, warp_decode."""

    def run(self, call: PagedAttention | TreeAttention) -> AttentionOutput:
        from attnkit.kernels.triton.paged import plan as paged_plan

        batch, mask = (call.paged, call.tree_mask) if isinstance(call, TreeAttention) else (call, None)
        if mask is not None:
            batch = replace(batch, softmax=replace(batch.softmax, causal=False))
        out, lse, kernel = paged_plan.paged(batch, tree_mask=mask, arch="sm_90")
        return AttentionOutput(out, lse, kernel)


def spread(call: PagedAttention) -> PagedAttention:
    """Queries of very unlike rows: 2^-20 to 2^40 of the usual, more than float16 holds, with a scale that evens it out."""
    powers = torch.tensor([-20.0, -3.0, 3.0, 40.0])[torch.arange(call.query.shape[1]) % 4]
    rows = call.query.float() * torch.exp2(powers)[None, :, None]
    return replace(call, query=rows.to(call.query.dtype), softmax=replace(call.softmax, softmax_scale=2.0**-10))


case("large-scores", "TRITON_ATTN", large_scores)
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
ONE, ONE_LENS = [1, 1, 1, 1], [1, 63, 64, 300]
slopes = torch.tensor([0.5, 0.25, 0.1, 0.05])
case("warp", Hopper(), lambda: paged(ONE, ONE_LENS))
case("warp-bf16", Hopper(), lambda: paged([1, 1], [64, 300], dtype=BF16, dim=128))
case("warp-one-split", Hopper(), lambda: paged([1] * 3, [1, 63, 100]))
case("warp-block-128", Hopper(), lambda: paged(ONE, ONE_LENS, block=128))
case("warp-dim-80", Hopper(), lambda: paged([1, 1], [63, 300], dim=80, dtype=BF16))
case("warp-window", Hopper(), lambda: paged([1, 1], [300, 9], window=(70, 0)))
case("warp-softcap", Hopper(), lambda: paged(ONE, ONE_LENS, softcap=5.0), loose=1.5)
case("warp-alibi", Hopper(), lambda: paged(ONE, ONE_LENS, alibi_slopes=slopes))
case("warp-sinks", Hopper(), lambda: paged(ONE, ONE_LENS, sinks=torch.tensor([1.0, -2.0, 0.0, 5.0])))
case("warp-tree", Hopper(), lambda: tree(4, 4, (300, 50)))
case("warp-speculative", Hopper(), lambda: paged([3, 3], [50, 300], heads=8))
for fp8 in (E4M3, E5M2):
    for dtype in (F16, BF16):
        case(
            f"warp-{str(fp8)[6:]}-{str(dtype)[6:]}",
            Hopper(),
            lambda f=fp8, d=dtype: paged(ONE, ONE_LENS, cache=f, dtype=d, dim=128),
            loose=1.5,
        )
case("warp-fp8-dim-80", Hopper(), lambda: paged(ONE, ONE_LENS, cache=E4M3, dim=80), loose=2)
case("warp-fp8-dim-256", Hopper(), lambda: paged(ONE, ONE_LENS, cache=E4M3, dim=256, dtype=BF16), loose=2)
case("warp-fp8-rows", Hopper(), lambda: paged([5, 5], [90, 300], heads=8, cache=E4M3, dtype=BF16), loose=2)
case("warp-fp8-softcap", Hopper(), lambda: paged(ONE, ONE_LENS, cache=E4M3, softcap=5.0, dtype=BF16), loose=2)
case("warp-fp8-alibi", Hopper(), lambda: paged(ONE, ONE_LENS, cache=E4M3, alibi_slopes=slopes), loose=2)
case("warp-fp8-sinks", Hopper(), lambda: paged(ONE, ONE_LENS, cache=E4M3, sinks=torch.tensor([1.0, -2.0, 0.0, 5.0])), loose=2)
case("warp-fp8-rows-apart", Hopper(), lambda: spread(paged(ONE, ONE_LENS, cache=E4M3, dtype=BF16)), loose=2)
case("strided-cache", "TRITON_ATTN", strided)
case("varlen", "TRITON_ATTN", lambda: varlen(True))
case("varlen-non-causal", "TRITON_ATTN", lambda: varlen(False))
case("mla", "TRITON_MLA", lambda: mla([1, 1], [50, 60]))
case("mla-split", "TRITON_MLA", lambda: mla([1, 1], [300, 1], dtype=BF16))
case("mla-two-tokens", "TRITON_MLA", lambda: mla([2, 2], [40, 50], heads=24))
case("mla-fp8", "TRITON_MLA", lambda: mla([1], [50], cache=torch.float8_e4m3fn), loose=2)
case("tree", "TREE_ATTN", lambda: tree(4, 2))
case("tree-split", "TREE_ATTN", lambda: tree(4, 2, (300,)))
case("tree-rows", "TREE_ATTN", lambda: tree(16, 1))
case("tree-rows-split", "TREE_ATTN", lambda: tree(8, 1, (300,)))
case("tree-unequal", "TREE_ATTN", unequal_trees)
for chunk, local in ((40, 8), (1024, 64)):
    case(f"dual-{chunk}", "DUAL_CHUNK_FLASH_ATTN", lambda c=chunk, n=local: dual([70, 1], [90, 200], c, n), loose=1.5)
case("dual-decode", "DUAL_CHUNK_FLASH_ATTN", lambda: dual([1, 1], [300, 33], 40, 8, 32), loose=1.5)
case("dual-odd-period", "DUAL_CHUNK_FLASH_ATTN", lambda: dual([1, 2], [300, 64], 61, 8, 32), loose=1.5)
case("dual-few-cosines", "DUAL_CHUNK_FLASH_ATTN", lambda: dual([1, 1], [300, 33], 12, 2, rows=20), loose=1.5)
case("dual-rows-split", "DUAL_CHUNK_FLASH_ATTN", lambda: dual([20], [300], 61, 8), loose=1.5)
case("dual-fp8", "DUAL_CHUNK_FLASH_ATTN", lambda: dual([20, 1], [60, 50], 61, 8, cache=torch.float8_e4m3fn), loose=2)
NEW, LENS = [70, 0, 1, 9], [90, 0, 200, 30]
for chunk, local in ((40, 8), (1024, 64)):
    case(f"dual-composed-{chunk}", Composed(), lambda c=chunk, n=local: dual(NEW, LENS, c, n, 32), loose=1.5)
case("dual-composed-bf16", Composed(), lambda: dual([70, 3], [190, 3], 61, 8, dtype=BF16), loose=1.5)
case("dual-composed-fp8", Composed(), lambda: dual([70], [190], 61, 8, cache=torch.float8_e4m3fn), loose=2)
case("dual-composed-heads-in-turn", Composed(1 << 18), lambda: dual(NEW, LENS, 40, 8, heads=6, kv_heads=3), loose=1.5)
case("differential", "DIFFERENTIAL_FLASH_ATTN", lambda: differential([70, 1], [90, 200], True), loose=2)
case("differential-decode", "DIFFERENTIAL_FLASH_ATTN", lambda: differential([1, 1], [300, 33], False), loose=2)
case("differential-decode-fp8", "DIFFERENTIAL_FLASH_ATTN", lambda: differential([1, 1], [300, 33], True, cache=E4M3), loose=3)


def apart() -> DifferentialAttention:
    """Keys whose heads do not lie side by side: not to be seen as pairs, so two passes."""
    call = differential([1, 1], [300, 33], True)
    key = call.paged.key_cache.transpose(1, 2).contiguous().transpose(1, 2)
    return replace(call, paged=replace(call.paged, key_cache=key))


case("differential-apart", "DIFFERENTIAL_FLASH_ATTN", apart, loose=2)


def wrong_scale(call: PagedAttention) -> PagedAttention:
    return replace(call, softmax=replace(call.softmax, softmax_scale=call.softmax.softmax_scale * 1.02))


def swapped_blocks(call: PagedAttention) -> PagedAttention:
    """Blocks that every query sees could be swapped without harm; the fifth is behind the diagonal of some."""
    table = call.block_table.clone()
    table[1, 0], table[1, 4] = call.block_table[1, 4], call.block_table[1, 0]
    return replace(call, block_table=table)


case("planted-scale", "TRITON_ATTN", lambda: paged([1, 40], [50, 90]), spoil=wrong_scale)
case("planted-block", "TRITON_ATTN", lambda: paged([1, 40], [50, 90]), spoil=swapped_blocks)


def cache_write(dtype: torch.dtype, *, halves: bool = False) -> dict[str, Any]:
    """Quantised rows equal torch's own saturating conversion; skipped tokens leave the cache alone.

    `halves`: keys and values are the halves of a row, and heads lie before tokens, as vLLM may hold them.
    """
    from attnkit.kernels.triton.cache_write import write_kv_cache

    low_precision = dtype.itemsize == 1
    rows = torch.randn(60, 2, 24) * 10 ** torch.empty(60, 1, 1).uniform_(-6, 3)
    rows[0, 0, :5] = torch.tensor([0.0, -0.0, float("nan"), 1e9, -1e9])
    rows = rows if low_precision else rows.to(dtype)
    cache = torch.full((8, 16, 2, 24), 1.0).to(dtype)
    values = cache.clone()
    if halves:
        store = torch.full((8, 2, 16, 48), 1.0).to(dtype).transpose(1, 2)
        cache, values = store[..., :24], store[..., 24:]
    slots = torch.randperm(128)[:60]
    slots[7] = -1
    name = write_kv_cache(rows, rows * 2, cache, values, slots, 0.5, 0.25)
    largest = torch.finfo(dtype).max if low_precision else float("inf")
    want = torch.full((128, 2, 24), 1.0)
    want_values = want.clone()
    kept = slots >= 0
    want[slots[kept]] = (rows[kept].float() / (0.5 if low_precision else 1.0)).clamp(-largest, largest)
    want_values[slots[kept]] = ((rows * 2)[kept].float() / (0.25 if low_precision else 1.0)).clamp(-largest, largest)
    differ = 0
    for got, wanted in ((cache, want), (values, want_values)):
        a, b = got.reshape(128, 2, 24).float(), wanted.to(dtype).float()
        differ += int(((a != b) & ~(a.isnan() & b.isnan())).sum())
    return {"kernel": name, "differ": differ}


for _dtype in ("float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"):
    CASES[f"write-{_dtype}"] = lambda d=_dtype: cache_write(getattr(torch, d))
    CASES[f"write-halves-{_dtype}"] = lambda d=_dtype: cache_write(getattr(torch, d), halves=True)


def main() -> None:
    lean()
    for name, run in CASES.items():
        torch.manual_seed(0)
        print(json.dumps({"case": name, **run()}), flush=True)


if __name__ == "__main__":
    main()
