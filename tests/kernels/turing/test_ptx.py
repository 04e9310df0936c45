"""The PTX rewrite: text in, text out, and the claim about register fragments behind it."""

import numpy as np
import pytest

from attnkit.errors import UnsupportedError
from attnkit.kernels.turing.ptx import legalise, opcodes

HEAD = ".version 8.7\n.target sm_75\n.address_size 64\n.visible .entry k() {\n"
F16 = (
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
    "{ %r1, %r2, %r3, %r4 }, { %r5, %r6, %r7, %r8 }, { %r9, %r10 }, { %r1, %r2, %r3, %r4 };"
)


def module(*lines: str, target: str = "sm_75") -> str:
    return HEAD.replace("sm_75", target) + "".join(f"\t{line}\n" for line in lines) + "}\n"


def test_deep_fp16_becomes_two_shallow_ones():
    out = legalise(module(F16))
    assert [line.strip() for line in out.splitlines() if "mma" in line] == [
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{ %r1, %r2, %r3, %r4 }, { %r5, %r6 }, { %r9 }, { %r1, %r2, %r3, %r4 };",
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{ %r1, %r2, %r3, %r4 }, { %r7, %r8 }, { %r10 }, { %r1, %r2, %r3, %r4 };",
    ]


def test_the_second_half_continues_from_the_first():
    text = F16.replace("{ %r1, %r2, %r3, %r4 };", "{ %r21, %r22, %r23, %r24 };")
    first, second = [line.strip() for line in legalise(module(text)).splitlines() if "mma" in line]
    assert first.endswith("{ %r21, %r22, %r23, %r24 };")
    assert second.endswith("{ %r1, %r2, %r3, %r4 };")


def test_twice_changes_nothing():
    once = legalise(module(F16))
    assert legalise(once) == once


def test_int8_becomes_four():
    op = F16.replace("m16n8k16.row.col.f32.f16.f16.f32", "m16n8k32.row.col.satfinite.s32.s8.s8.s32")
    found = opcodes(legalise(module(op)))
    assert found["mma.sync.aligned.m8n8k16.row.col.satfinite.s32.s8.s8.s32"] == 4


REFUSED = {
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r1}, {%r2}, {%r3}, {%r4};": "bfloat16 tensor cores",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r1}, {%r2}, {%r3}, {%r4};": "tf32 tensor cores",
    "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%r1}, {%r2}, {%r3}, {%r4};": "float8 tensor cores",
    "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%r1}, {%r2}, {%r3}, {%r4};": "float64 tensor cores",
    "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%r1}, {%r2}, {%r3}, {%r4};": "such matrix instruction",
    "mma.sp.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r1}, {%r2}, {%r3}, {%r4}, %r5, 0x0;": "such matrix instruction",
    "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%r1}, %rd1, %rd2, 1, 1, 1, 0, 0;": "warp-group",
    "cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;": "asynchronous copies",
    "@%p1 cp.async.commit_group;": "asynchronous copies",
    "{ cp.async.wait_group 0; }": "asynchronous copies",
    "mbarrier.init.shared::cta.b64 [%r1], 1;": "asynchronous barriers",
    "redux.sync.add.s32 %r1, %r2, 0xffffffff;": "warp-wide reduction",
    "createpolicy.fractional.L2::evict_first.b64 %rd1, 1.0;": "L2 cache policies",
    "ld.global.L1::evict_first.L2::cache_hint.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ], %rd2;": "L2 cache hints",
    "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%r1, %r2}, [%r3];": "such form of ldmatrix",
    "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r1], {%r2, %r3, %r4, %r5};": "such instruction",
    "cvt.rn.bf16.f32 %rs1, %r1;": "bfloat16, tf32 or float8 conversions",
    "cvt.rn.bf16x2.f32 %r1, %r2, %r3;": "bfloat16, tf32 or float8 conversions",
    "cvt.rn.f16x2.f32 %r1, %r2, %r3;": "packed or clamped conversions",
    "cvt.rn.f16x2.e4m3x2 %r1, %rs1;": "bfloat16, tf32 or float8 conversions",
    "fma.rn.bf16x2 %r1, %r2, %r3, %r4;": "bfloat16 arithmetic",
    "max.NaN.f32 %r1, %r2, %r3;": "NaN-propagating",
    "max.f16x2 %r1, %r2, %r3;": "float16 minimum and maximum",
    "fma.rn.f32x2 %rd1, %rd2, %rd3, %rd4;": "packed float32",
    "griddepcontrol.wait;": "dependent launch",
    "setmaxnreg.inc.sync.aligned.u32 232;": "such instruction",
    "ld.global.v8.b32 {%r1}, [%rd1];": "256-bit",
}


@pytest.mark.parametrize(("line", "what"), REFUSED.items(), ids=[line.split(" ", 1)[0] for line in REFUSED])
def test_what_turing_lacks_is_refused_by_name(line, what):
    with pytest.raises(UnsupportedError, match="sm_75 has no") as error:
        legalise(module(F16, line))
    assert what in str(error.value)


KEPT = (
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r5];",
    "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r1, %r2}, [%r5];",
    "cvt.rn.f16.f32 %rs1, %r1;",
    "ex2.approx.ftz.f32 %r1, %r2;",
    "max.f32 %r1, %r2, %r3;",
    "ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];",
    "@%p2 st.global.v4.b32 [ %rd1 + 0 ], { %r1, %r2, %r3, %r4 };",
    "shfl.sync.bfly.b32 %r1, %r2, 16, 31, -1;",
    "mul.f16x2 %r1, %r2, %r3;",
    "atom.global.gpu.acq_rel.add.u32 %r1, [%rd1], 1;",
    "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%r1, %r2}, {%r3, %r4}, {%r5}, {%r1, %r2};",
    "// cp.async in a comment",
)


@pytest.mark.parametrize("line", KEPT)
def test_what_turing_has_passes_unchanged(line):
    assert legalise(module(line)) == module(line)


def test_another_target_is_refused():
    with pytest.raises(UnsupportedError, match="sm_80; must be sm_75"):
        legalise(module(F16, target="sm_80"))


def test_overwritten_operands_are_refused():
    with pytest.raises(UnsupportedError, match="overwrite its own operands"):
        legalise(module(F16.replace("{ %r5, %r6, %r7, %r8 }", "{ %r5, %r6, %r1, %r8 }")))


def fragments(matrix, rows, columns):
    """Registers [32 lanes][register] -> a block of the matrix, as the PTX ISA lays an operand out."""
    return [[matrix[np.ix_(r(lane), c(lane))].ravel() for r, c in zip(rows, columns, strict=True)] for lane in range(32)]


def test_halves_of_the_deep_fragment_are_the_shallow_fragments():
    """m16n8k16's registers {a0,a1},{b0} hold exactly the operands of m16n8k8 over k = 0..7, {a2,a3},{b1} over k = 8..15."""
    a = np.arange(16 * 16).reshape(16, 16)
    b = np.arange(16 * 8).reshape(16, 8)

    def a_regs(m, deep):
        offsets = [(0, 0), (8, 0), (0, 8), (8, 8)] if deep else [(0, 0), (8, 0)]
        rows = [lambda lane, r=r: [lane // 4 + r] for r, _ in offsets]
        cols = [lambda lane, c=c: [lane % 4 * 2 + c, lane % 4 * 2 + 1 + c] for _, c in offsets]
        return np.array(fragments(m, rows, cols))

    def b_regs(m, deep):
        offsets = [0, 8] if deep else [0]
        rows = [lambda lane, k=k: [lane % 4 * 2 + k, lane % 4 * 2 + 1 + k] for k in offsets]
        return np.array(fragments(m, rows, [lambda lane: [lane // 4]] * len(offsets)))

    deep_a, deep_b = a_regs(a, True), b_regs(b, True)
    for half in (0, 1):
        np.testing.assert_array_equal(deep_a[:, 2 * half : 2 * half + 2], a_regs(a[:, 8 * half :], False))
        np.testing.assert_array_equal(deep_b[:, half : half + 1], b_regs(b[8 * half :], False))
