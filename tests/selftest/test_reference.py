"""The float64 reference against independent formulations."""

from __future__ import annotations

import math
import platform
from dataclasses import replace

import pytest
import torch

from attnkit.hardware.device import Device
from attnkit.selftest.cases import Case
from attnkit.selftest.reference import reference
from attnkit.selftest.tensors import TREE_PARENTS, build
from attnkit.spec import Softmax, VarlenAttention

CPU = Device("cpu", "cpu", "CPU", platform.machine())
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def _case(op, *seqs, **changes):
    mla = op == "mla_decode"
    base = Case("t", "", op, "float32", 4, 1 if mla else 2, 48 if mla else 32, 32, 16, seqs)
    return replace(base, **changes)


def _plain(q, k, v, mask, scale):
    """torch's SDPA in float64 on [n, H, d], [L, Hkv, d]."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1).double() for x in (q, k, v)), attn_mask=mask, scale=scale
    )
    return out.transpose(0, 1)


def _varlen(n, length, **softmax):
    draw = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(m, h, 16, generator=draw) for m, h in ((n, 4), (length, 2), (length, 2)))
    starts = [torch.tensor([0, m], dtype=torch.int32) for m in (n, length)]
    return VarlenAttention(q, k, v, *starts, n, length, Softmax(0.3, **softmax), return_lse=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [(-1, -1), (3, 0), (2, 4)])
def test_masks_agree_with_sdpa(causal, window):
    call = _varlen(9, 14, causal=causal, window=window)
    mask = torch.ones(9, 14, dtype=torch.bool)
    for i in range(9):
        for j in range(14):
            ahead = j - (i + 5)
            mask[i, j] = (
                (not causal or ahead <= 0) and (window[0] < 0 or -ahead <= window[0]) and (window[1] < 0 or ahead <= window[1])
            )
    torch.testing.assert_close(reference(call).out, _plain(call.query, call.key, call.value, mask, 0.3), **EXACT)


def test_softcap_alibi_sinks_and_lse_by_brute_force():
    slopes, sinks = torch.tensor([0.5, 0.25, 0.1, 0.0]), torch.tensor([0.3, -1.0, 2.0, 0.0])
    call = _varlen(3, 5, softcap=2.0, alibi_slopes=slopes, sinks=sinks)
    got = reference(call)
    for i in range(3):
        for h in range(4):
            weights, total = [], math.exp(float(sinks[h]))
            for j in range(i + 3):
                s = 0.3 * sum(float(a) * float(b) for a, b in zip(call.query[i, h], call.key[j, h // 2], strict=True))
                s = 2.0 * math.tanh(s / 2.0) + float(slopes[h]) * (j - (i + 2))
                weights.append(math.exp(s))
            total += sum(weights)
            assert math.isclose(float(got.lse[i, h]), math.log(total), rel_tol=1e-9)
            for d in range(16):
                want = sum(w * float(call.value[j, h // 2, d]) for j, w in enumerate(weights)) / total
                assert math.isclose(float(got.out[i, h, d]), want, rel_tol=1e-9, abs_tol=1e-12)


def test_a_query_without_keys_is_zero_and_its_lse_minus_infinity():
    got = reference(_varlen(4, 2))
    assert not got.out[:2].any() and torch.isneginf(got.lse[:2]).all()
    assert got.out[2:].any() and torch.isfinite(got.lse[2:]).all()


def test_pages_equal_contiguous_keys_and_unused_slots_are_never_read():
    call = build(_case("paged", (5, 20), (0, 0), (1, 33)))
    assert call.key_cache.isnan().any()
    keys, values = ([], [])
    for row, length in enumerate(call.seq_lens.tolist()):
        for p in range(length):
            block = int(call.block_table[row, p // 16])
            keys.append(call.key_cache[block, p % 16])
            values.append(call.value_cache[block, p % 16])
    starts = torch.tensor([0, 20, 20, 53], dtype=torch.int32)
    packed = VarlenAttention(
        call.query, torch.stack(keys), torch.stack(values), call.query_start_loc, starts, 5, 33, call.softmax
    )
    got = reference(call).out
    assert torch.isfinite(got).all()
    assert torch.equal(got, reference(packed).out)


def test_mla_absorbed_equals_the_expanded_heads():
    call = build(_case("mla_decode", (1, 21)))
    draw = torch.Generator().manual_seed(5)
    up_k, up_v = (torch.randn(4, 32, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    nope = torch.randn(1, 4, 8, generator=draw, dtype=torch.float64)
    latent_q = torch.einsum("nhd,hcd->nhc", nope, up_k)
    pe = call.query[..., 32:].double()
    absorbed = replace(call, query=torch.cat((latent_q, pe), -1))
    got = torch.einsum("nhc,hcd->nhd", reference(absorbed).out, up_v)
    cache = torch.cat([call.kv_cache[int(b)] for b in call.block_table[0]])[:21].double()
    c, k_pe = cache[:, :32], cache[:, 32:]
    keys = torch.cat((torch.einsum("tc,hcd->thd", c, up_k), k_pe[:, None].expand(-1, 4, -1)), -1)
    values = torch.einsum("tc,hcd->thd", c, up_v)
    want = _plain(torch.cat((nope, pe), -1), keys, values, None, call.softmax_scale)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_a_tree_node_equals_causal_attention_over_its_own_path():
    call = build(_case("tree", (8, 20)))
    got, paged = reference(call).out, call.paged
    rows = [(int(paged.block_table[0, p // 16]), p % 16) for p in range(20)]
    for node in range(8):
        path, at = [], node
        while at >= 0:
            path.insert(0, at)
            at = TREE_PARENTS[at]
        seen = [*range(12), *(12 + n for n in path)]
        k, v = (torch.stack([cache[rows[p]] for p in seen]) for cache in (paged.key_cache, paged.value_cache))
        want = _plain(paged.query[node : node + 1], k, v, None, paged.softmax.softmax_scale)
        torch.testing.assert_close(got[node : node + 1], want, **EXACT)


def _rotated(x, positions, cos, sin):
    """Rotation as a complex product: another formulation than the reference's."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.complex(cos, sin)[positions][:, None]
    return torch.cat((turned.real, turned.imag), -1)


def test_dual_chunk_with_one_chunk_is_plain_rotary_attention():
    call = replace(build(_case("dual_chunk", (30, 30))), original_max_position=None)
    paged, cos, sin = call.paged, call.rope_cos.double(), call.rope_sin.double()
    k, v = (
        torch.cat([cache[int(b)] for b in paged.block_table[0]])[:30].double() for cache in (paged.key_cache, paged.value_cache)
    )
    q, k = (_rotated(x, torch.arange(30), cos, sin) for x in (paged.query.double(), k))
    want = _plain(q, k, v, torch.ones(30, 30, dtype=torch.bool).tril(), paged.softmax.softmax_scale)
    torch.testing.assert_close(reference(call).out, want, **EXACT)


def test_dual_chunk_positions_across_chunks_by_brute_force():
    call = replace(build(_case("dual_chunk", (1, 120))), original_max_position=100)
    paged, cos, sin = call.paged, call.rope_cos.double(), call.rope_sin.double()
    k, v = (
        torch.cat([cache[int(b)] for b in paged.block_table[0]])[:120].double()
        for cache in (paged.key_cache, paged.value_cache)
    )
    i, s = 119, call.chunk_size - call.local_size
    factor = max(1.0, 0.1 * math.log(120 / 100) + 1.0)
    positions = []
    for j in range(120):
        away = i // s - j // s
        positions.append(
            i % s if away == 0 else min(i % s + s, call.chunk_size) if away == 1 else min(2 * s - 1, call.chunk_size)
        )
    q = _rotated(paged.query.double().expand(120, -1, -1), torch.tensor(positions), cos, sin)
    k = _rotated(k, torch.arange(120) % s, cos, sin).repeat_interleave(2, 1)
    p = torch.softmax(paged.softmax.softmax_scale * factor * (q * k).sum(-1), 0)
    want = torch.einsum("jh,jhd->hd", p, v.repeat_interleave(2, 1))
    torch.testing.assert_close(reference(call).out[0], want, **EXACT)


def test_differential_formula():
    call = build(_case("differential", (6, 6), heads=8, kv_heads=4))
    paged = call.paged
    k, v = (torch.cat([c[int(b)] for b in paged.block_table[0]])[:6].double() for c in (paged.key_cache, paged.value_cache))
    q, mask = paged.query.double(), torch.ones(6, 6, dtype=torch.bool).tril()
    for pair in range(4):
        kv = pair // 2
        maps = [
            torch.softmax(
                (paged.softmax.softmax_scale * q[:, 2 * pair + side] @ k[:, 2 * kv + side].T).masked_fill(~mask, -math.inf), -1
            )
            for side in (0, 1)
        ]
        x = (maps[0] - call.lambda_full * maps[1]) @ torch.cat((v[:, 2 * kv], v[:, 2 * kv + 1]), -1)
        want = (1 - call.lambda_init) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + call.eps) * call.norm_weight.double()
        torch.testing.assert_close(reference(call).out[:, pair], want, **EXACT)
