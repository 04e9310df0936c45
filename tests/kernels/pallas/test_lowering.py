"""The Pallas kernel lowers for TPU without a TPU: Mosaic takes it, for the head geometries PALLAS claims."""

from __future__ import annotations

import functools

import pytest

jax = pytest.importorskip("jax", reason="PALLAS needs jax")


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_query_len", [1, 96])
def test_exports_for_tpu(head_dim: int, dtype: str, max_query_len: int) -> None:
    from attnkit.kernels.pallas.paged import paged_attention

    shape = jax.ShapeDtypeStruct
    num_seqs, block_size, kv_heads, heads = 4, 32, 8, 32
    fn = functools.partial(
        paged_attention, max_query_len=max_query_len, max_seq_len=256, softmax_scale=0.1, window=(64, 0), softcap=30.0
    )
    exported = jax.export.export(jax.jit(fn), platforms=["tpu"])(
        shape((num_seqs * max_query_len, heads, head_dim), dtype),
        shape((40, block_size, kv_heads, head_dim), dtype),
        shape((40, block_size, kv_heads, head_dim), dtype),
        shape((num_seqs, 8), "int32"),
        shape((num_seqs,), "int32"),
        shape((num_seqs + 1,), "int32"),
    )
    text = exported.mlir_module()
    assert text.count("tpu_custom_call") >= 1
    assert "attnkit_paged_attention" in text
    assert len(exported.serialize()) > 1000
