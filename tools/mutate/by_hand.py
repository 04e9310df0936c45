"""Mutants that somebody thought of: (families, file, text, instead), the text once in the file."""

from __future__ import annotations

from pathlib import Path

from tools.mutate.rules import Mutant

_T = "kernels/triton"
_PAGED = ("TRITON_ATTN",)
_SHARED = ("TRITON_ATTN", "TREE_ATTN")
_DUAL = ("DUAL_CHUNK_FLASH_ATTN",)
_COMPOSED = ("DUAL_CHUNK_FLASH_ATTN, composed",)
_DIFF = ("DIFFERENTIAL_FLASH_ATTN",)
_CPP = ("TORCH_SDPA, C++",)


CHANGES: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    (_SHARED, f"{_T}/tiles.py", "shrink = tl.exp2(m - pivot)", "shrink = 1.0"),
    (
        _PAGED,
        f"{_T}/tiles.py",
        "(n[None, :] - position[:, None]).to(tl.float32)",
        "(n[None, :] - position[:, None]).to(tl.float16)",
    ),
    (_PAGED, f"{_T}/tiles.py", "slope[:, None] * LOG2E *", "slope[:, None] *"),
    (_PAGED, f"{_T}/tiles.py", "        v_rows = k_rows\n", "        v_rows = k_rows * 0\n"),
    (_PAGED, f"{_T}/rows.py", "return v_scale / tl.where", "return 1.0 / tl.where"),
    (_PAGED, f"{_T}/rows.py", "(m + tl.log2(total)) * LN2", "(m + tl.log2(total))"),
    (_PAGED, f"{_T}/rows.py", "head = kv_head * GROUP + row % GROUP", "head = kv_head + row % GROUP * (16 // 16)"),
    (_PAGED, f"{_T}/rows.py", "token = (query_start + node).to(tl.int64)", "token = (query_start + node + 1).to(tl.int64)"),
    (_SHARED, f"{_T}/rows.py", "acc.to(out.dtype.element_ty)", "(acc - tl.abs(acc) * 0.002).to(out.dtype.element_ty)"),
    (
        _PAGED,
        f"{_T}/rows.py",
        "mask=rows.real[:, None] & (d[None, :] < WIDTH),\n    )\n\n\n@triton.jit\ndef write_lse",
        "mask=(d[None, :] < WIDTH),\n    )\n\n\n@triton.jit\ndef write_lse",
    ),
    (_PAGED, f"{_T}/merge_splits.py", "(top + tl.log2(total)) * LN2", "top + tl.log2(total)"),
    (_PAGED, f"{_T}/merge_splits.py", "weight = tl.exp2(part - top)", "weight = tl.exp(part - top)"),
    (
        _PAGED,
        f"{_T}/merge_splits.py",
        "mask=(weight > 0.0)[:, None] & (dv[None, :] < HEAD_DIM_V)",
        "mask=(dv[None, :] < HEAD_DIM_V)",
    ),
    (_PAGED, f"{_T}/paged/plan.py", "float(softmax.softmax_scale * k_scale)", "float(softmax.softmax_scale)"),
    (_PAGED, f"{_T}/paged/plan.py", '"v_scale": float(call.v_scale)', '"v_scale": float(call.k_scale)'),
    (_PAGED, f"{_T}/paged/plan.py", '"window_right": max(right, 0)', '"window_right": max(right, 1)'),
    (_PAGED, f"{_T}/paged/plan.py", '"SINKS": softmax.sinks is not None', '"SINKS": False'),
    (_PAGED, f"{_T}/launch.py", "    if out is None:\n        out = torch.empty", "    if True:\n        out = torch.empty"),
    (_PAGED, f"{_T}/launch.py", '"stride_v_token": value.data.stride(1)', '"stride_v_token": value.data.stride(2)'),
    (_PAGED, f"{_T}/launch.py", '"SAME_STRIDES": key.data.stride()[:2] == value.data.stride()[:2]', '"SAME_STRIDES": False'),
    (
        ("TREE_ATTN",),
        f"{_T}/tiles.py",
        "mask.tree + node * mask.stride_node + (n - context) * mask.stride_edge",
        "mask.tree + node * mask.stride_edge + (n - context) * mask.stride_node",
    ),
    (("TREE_ATTN",), f"{_T}/tiles.py", "visible &= (n < context) | (edge != 0)", "visible &= (n <= context) | (edge != 0)"),
    (
        ("TREE_ATTN",),
        f"{_T}/paged/plan.py",
        "None if tree_mask is None else tree_mask.view(torch.uint8)",
        "None if tree_mask is None else torch.ones_like(tree_mask).tril().view(torch.uint8)",
    ),
    (("TRITON_MLA",), f"{_T}/mla/kernel.py", "s = matmul(q_rope, tl.trans(rope), s)", "s = s"),
    (("TRITON_MLA",), f"{_T}/mla/kernel.py", "(n[None, :] <= position[:, None])", "(n[None, :] < position[:, None])"),
    (("TRITON_MLA",), f"{_T}/mla/kernel.py", "share_of(total, kv_scale)", "share_of(total, 1.0)"),
    (("TRITON_MLA",), f"{_T}/mla/kernel.py", "            write_nothing(lse, rows, HEADS, BLOCK_M)\n", ""),
    (
        ("TRITON_MLA",),
        f"{_T}/mla/plan.py",
        '"scale": float(call.softmax_scale * call.kv_scale)',
        '"scale": float(call.softmax_scale)',
    ),
    (
        _DUAL,
        f"{_T}/dual_chunk/plan.py",
        '"scale": float(paged.softmax.softmax_scale * paged.k_scale)',
        '"scale": float(paged.softmax.softmax_scale)',
    ),
    (_DUAL, f"{_T}/dual_chunk/plan.py", '"v_scale": float(paged.v_scale)', '"v_scale": float(paged.k_scale)'),
    (_DUAL, f"{_T}/dual_chunk/plan.py", "scaled = call.original_max_position is not None", "scaled = False"),
    (_DUAL, f"{_T}/dual_chunk/plan.py", "period = call.chunk_size - call.local_size", "period = call.chunk_size"),
    (_COMPOSED, f"{_T}/dual_chunk/composed_plan.py", '"v_scale": float(paged.v_scale)', '"v_scale": 1.0'),
    (
        _COMPOSED,
        f"{_T}/dual_chunk/composed_plan.py",
        "paged.softmax.softmax_scale * paged.k_scale",
        "paged.softmax.softmax_scale",
    ),
    (_DIFF, f"{_T}/differential.py", "column = d - head % 2 * WIDTH", "column = d"),
    (_DIFF, f"{_T}/differential.py", "x = tl.load(first + at", "x = 1.01 * tl.load(first + at"),
    (_DIFF, f"{_T}/differential.py", "* (1.0 - lambda_init)", "* 1.0"),
    (_DIFF, f"{_T}/differential.py", "query = call.query[:, which::2]", "query = call.query[:, 0::2]"),
    (_DIFF, f"{_T}/differential.py", "key_cache=call.key_cache[:, :, which::2]", "key_cache=call.key_cache[:, :, 0::2]"),
    (_CPP, "kernels/cpu/attention.cpp", "sum = sum * keep + __builtin_exp2f(sink - both);", "sum = sum * keep;"),
    (_CPP, "kernels/cpu/attention.cpp", "top * kLn2 + __builtin_logf(sum)", "top + __builtin_logf(sum)"),
    (
        _CPP,
        "kernels/cpu/attention.cpp",
        "y[i] = float_to_bfloat(from[i])",
        "{ uint32_t bits; memcpy(&bits, from + i, 4); y[i] = bits >> 16; }",
    ),
    (
        _CPP,
        "kernels/cpu/attention.cpp",
        "offset += number * block +",
        "offset += static_cast<int32_t>(number * static_cast<int32_t>(block)) +",
    ),
    (_CPP, "kernels/cpu/attention.cpp", "if (c.v_scale != 1.0f)", "if (c.v_scale != c.v_scale)"),
    (
        _CPP,
        "kernels/cpu/attention.cpp",
        "int head(int r) const { return it.kv_head * group + (it.row0 + r) % group; }",
        "int head(int r) const { return it.kv_head + (it.row0 + r) % group * c.kv_heads; }",
    ),
    (_CPP, "kernels/cpu/launch.py", "softmax.softmax_scale * key_scale", "softmax.softmax_scale"),
    (_CPP, "kernels/cpu/launch.py", "call.k_scale, call.v_scale", "call.k_scale, call.k_scale"),
    (_CPP, "kernels/cpu/launch.py", "    if out is None or out.stride(2) != 1:\n", "    if True:\n"),
    (
        ("TORCH_SDPA", "FLEX_ATTENTION"),
        "backends/torch_device.py",
        "        call.out.copy_(out)\n        out = call.out\n",
        "        pass\n",
    ),
    (("TORCH_SDPA", "FLEX_ATTENTION"), "backends/torch_common.py", "return (rows * scale).to(dtype)", "return rows.to(dtype)"),
    (
        ("TORCH_SDPA", "FLEX_ATTENTION"),
        "backends/torch_common.py",
        "read_cache(call.value_cache, slot, call.v_scale, dtype), starts",
        "read_cache(call.value_cache, slot, call.k_scale, dtype), starts",
    ),
    (("TORCH_SDPA",), "backends/torch_sdpa.py", 'KERNEL = "scaled_dot_product_attention"', 'KERNEL = "learnt"'),
    (
        ("TORCH_SDPA",),
        "backends/torch_sdpa.py",
        "    query, softmax = batch.query, batch.softmax\n    device, size",
        "    query, softmax = batch.query, batch.softmax\n    batch.block_table[0, -1] = 0\n    device, size",
    ),
    (
        ("TORCH_SDPA",),
        "backends/torch_sdpa.py",
        "value = read_cache(batch.value_cache, slot, batch.v_scale, query.dtype)",
        "value = read_cache(batch.value_cache, slot, batch.k_scale, query.dtype)",
    ),
    (
        ("TORCH_SDPA",),
        "backends/torch_sdpa.py",
        "    out = out.to(dtype)\n",
        "    out = (out.float().view(torch.int32) & -65536).view(torch.float32).to(dtype)\n",
    ),
    (("TORCH_SDPA",), "backends/torch_sdpa.py", "query, key, value = query.float(), key.float(), value.float()", "pass"),
    (("FLEX_ATTENTION",), "backends/flex_attention.py", "seen = q_seq[q] == k_seq[k]", "seen = q_seq[q] >= k_seq[k]"),
    (
        ("FLEX_ATTENTION",),
        "backends/flex_attention.py",
        "        out, lse = apply_sinks(out, lse, softmax.sinks)\n",
        "        out, _ = apply_sinks(out, lse, softmax.sinks)\n",
    ),
    (("FLEX_ATTENTION",), "backends/flex_attention.py", "scale=softmax.softmax_scale", "scale=softmax.softmax_scale * 1.01"),
)


def mutants(root: Path, family: str) -> list[Mutant]:
    """Those of a family; a text that its file no longer holds once, since the code moved on, makes none."""
    found: list[Mutant] = []
    for families, path, before, after in CHANGES:
        source = (root / path).read_text(encoding="utf-8")
        if family in families and source.count(before) == 1:
            found.append(Mutant.at(path, source, source.index(before), "by hand", before, after))
    return found
