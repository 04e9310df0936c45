"""Compiles the Triton kernels for architectures that are not in this machine; prints one JSON line a kernel.

Usage: compile_cases.py GROUP ARCH …. A process of its own, because it stands in for Triton's driver.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import torch

from attnkit.kernels.triton import cache_write, differential
from attnkit.kernels.triton.dual_chunk import plan as dual_chunk
from attnkit.kernels.triton.launch import Launch
from attnkit.kernels.triton.mla import plan as mla_plan
from attnkit.kernels.triton.paged import plan as paged_plan
from attnkit.kernels.triton.targets import TARGETS, compile_launch
from attnkit.spec import DifferentialAttention, DualChunkAttention, MlaDecode, PagedAttention, Softmax, TreeAttention

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def zeros(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.int32)


def paged(seqs: int, new: int, length: int, dtype=F16, dim=128, heads=32, kv_heads=8, cache=None, **softmax) -> PagedAttention:
    store = torch.empty(4, 16, kv_heads, dim).to(cache or dtype)
    return PagedAttention(
        query=torch.empty(seqs * new, heads, dim, dtype=dtype),
        key_cache=store,
        value_cache=store.clone(),
        block_table=torch.zeros(seqs, length // 16, dtype=torch.int32),
        seq_lens=zeros(seqs),
        query_start_loc=zeros(seqs + 1),
        max_query_len=new,
        max_seq_len=length,
        softmax=Softmax(dim**-0.5, **softmax),
    )


def prefill(arch: str, **options) -> list[Launch]:
    return paged_plan.plan_paged(paged(4, 512, 512, **options), arch=arch)[2]


def decode(arch: str, **options) -> list[Launch]:
    return paged_plan.plan_paged(paged(1, 1, 8192, **options), arch=arch, splits=2)[2]


def mla(arch: str, dtype: torch.dtype, cache: torch.dtype | None = None) -> list[Launch]:
    call = MlaDecode(
        query=torch.empty(16, 128, 576, dtype=dtype),
        kv_cache=torch.empty(4, 64, 576).to(cache or dtype),
        block_table=torch.zeros(16, 64, dtype=torch.int32),
        seq_lens=zeros(16),
        query_start_loc=zeros(17),
        max_query_len=1,
        max_seq_len=4096,
        kv_lora_rank=512,
        softmax_scale=0.07,
    )
    return mla_plan.plan(call, arch=arch)[2][:1]


def dual(arch: str, dtype: torch.dtype, dim: int) -> list[Launch]:
    rope = torch.empty(2048, dim // 2)
    return dual_chunk.plan(DualChunkAttention(paged(4, 512, 512, dtype, dim), 1024, 64, rope, rope), arch=arch)[2][:1]


def dual_decode(arch: str, dtype: torch.dtype, dim: int) -> list[Launch]:
    rope = torch.empty(2048, dim // 2)
    call = DualChunkAttention(paged(1, 1, 8192, dtype, dim), 1024, 64, rope, rope)
    return dual_chunk.plan(call, arch=arch, splits=8)[2][:1]


def dual_composed(arch: str, dtype: torch.dtype, dim: int, cache: torch.dtype | None = None) -> list[Launch]:
    rope = torch.empty(2048, dim // 2)
    call = DualChunkAttention(paged(1, 512, 8192, dtype, dim, 28, 4, cache), 1024, 64, rope, rope, 4096)
    return dual_chunk.plan(call, arch=arch, composed=True)[2]


def tree(arch: str, nodes: int = 9) -> list[Launch]:
    call = TreeAttention(paged(4, nodes, 512, causal=False), torch.ones(nodes, nodes, dtype=torch.bool))
    return paged_plan.plan_paged(call.paged, tree_mask=call.tree_mask, arch=arch, splits=4)[2][:1]


def others(arch: str, sixteen: tuple[torch.dtype, ...]) -> tuple[list[Launch], ...]:
    """Of the backends beside TRITON_ATTN."""
    fp8 = torch.float8_e4m3fn
    differential_call = DifferentialAttention(paged(4, 512, 512, dim=64), 0.5, 0.3)
    return (
        *(mla(arch, t, cache) for t in sixteen for cache in (None, fp8)),
        *(dual(arch, t, d) for t in sixteen for d in (64, 128, 256)),
        *(dual_decode(arch, t, d) for t in sixteen for d in (64, 128, 256)),
        dual_composed(arch, sixteen[-1], 128),
        dual_composed(arch, sixteen[-1], 64, fp8),
        tree(arch),
        tree(arch, 64),
        differential.plan(differential_call, arch=arch)[1][-1:],
        differential.plan(DifferentialAttention(paged(4, 1, 8192, dim=64), 0.5, 0.3), arch=arch)[1],
    )


def groups(arch: str) -> dict[str, Iterator[list[Launch]]]:
    """What each group compiles. "short": what a node serves with; "long": everything else that is claimed.

    For sm_75 what TRITON_ATTN runs there; the other backends' code goes through `attnkit.kernels.turing`, whose tests have it.
    """
    scalar = arch == "sm_75-scalar"
    sixteen = (F16,) if scalar else (F16, BF16)
    fp8 = torch.float8_e4m3fn
    store = torch.empty(4, 16, 8, 128)
    short = (prefill(arch, dtype=sixteen[-1]), decode(arch, dtype=sixteen[-1]))
    triton_attn = (
        *(prefill(arch, dtype=t, dim=d) for t in sixteen for d in (64, 80, 96, 128, 256)),
        *(decode(arch, dtype=t, dim=d) for t in sixteen for d in (64, 128, 256)),
        prefill(arch, dtype=sixteen[-1], cache=fp8),
        decode(arch, dtype=sixteen[-1], cache=fp8),
        decode(arch, dtype=sixteen[-1], cache=torch.float8_e5m2),
        decode(arch, dtype=sixteen[-1], cache=fp8, dim=64),
        decode(arch, dtype=sixteen[-1], cache=fp8, dim=256),
        decode(arch, dtype=sixteen[-1], cache=fp8, heads=256),
        prefill(arch, window=(128, 0), softcap=30.0, sinks=torch.empty(32), alibi_slopes=torch.empty(32)),
        [cache_write.plan_write(torch.empty(4, 8, 128, dtype=F16), store.to(fp8), zeros(4), 1.0)],
        [cache_write.plan_write(torch.empty(4, 8, 128, dtype=F16), store.half(), zeros(4), 1.0)],
    )
    return {"short": iter(short), "long": iter(triton_attn if scalar else triton_attn + others(arch, sixteen))}


def main(group: str, *archs: str) -> None:
    for arch in archs:
        for launches in groups("sm_75-scalar" if arch == "sm_75" else arch)[group]:
            for launch in launches:
                print(json.dumps(row(launch, arch)), flush=True)


def row(launch: Launch, arch: str) -> dict[str, str | int]:
    """What came out of one compilation."""
    made = compile_launch(launch, arch)
    named = [launch.args[name] for name in ("query", "out", "rows", "keys", "own_queries") if name in launch.args]
    return {
        "arch": arch,
        "kernel": made.kernel,
        "dtype": str(named[0].dtype),
        "shared": made.shared,
        "limit": TARGETS[arch].shared_limit,
        "matrix": sum(made.matrix_instructions.values()),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
