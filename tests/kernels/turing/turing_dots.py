"""A program: compile one dot product of each kind for sm_75 through the hook and say what came out, as JSON.

    python turing_dots.py

Needs Triton and attnkit, neither torch nor a GPU, so that it can be run by the Python of any Triton version.
"""

import json
import sys

import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attnkit.kernels.turing import hook
from tools.kernels.machine_code import inspect_ptx


@triton.jit
def dots(a, b, c, n, ACC: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr):
    """c = the sum over i < n of a[i] @ b[i], 64 x 64 each."""
    r = tl.arange(0, 64)
    at = r[:, None] * 64 + r[None, :]
    acc = tl.zeros((64, 64), ACC)
    for i in tl.range(n, num_stages=STAGES):
        acc = tl.dot(tl.load(a + i * 4096 + at), tl.load(b + i * 4096 + at), acc, input_precision=PRECISION, out_dtype=ACC)
    tl.store(c + at, acc)


@triton.jit
def hungry(a, c, N: tl.constexpr):
    """A transposition that needs N * N * 4 bytes of shared memory."""
    r = tl.arange(0, N)
    tile = tl.load(a + r[:, None] * N + r[None, :])
    tl.store(c + r[:, None] * N + r[None, :], tl.dot(tile, tl.trans(tile)).to(tl.float16))


KINDS = {
    "fp16-fp32": ("fp16", tl.float32, "fp32", "tf32", 3),
    "fp16-fp16": ("fp16", tl.float16, "fp16", "tf32", 3),
    "int8": ("i8", tl.int32, "i32", "tf32", 3),
    "fp8e5": ("fp8e5", tl.float32, "fp32", "tf32", 3),
    "bf16": ("bf16", tl.float32, "fp32", "tf32", 3),
    "tf32": ("fp32", tl.float32, "fp32", "tf32", 3),
    "fp32-ieee": ("fp32", tl.float32, "fp32", "ieee", 3),
    "fp64": ("fp64", tl.float64, "fp64", "ieee", 3),
}


def source(operand, acc, out, precision, stages):
    """A compilation unit of `dots`."""
    pointers = {"a": f"*{operand}", "b": f"*{operand}", "c": f"*{out}"}
    constants = {"ACC": acc, "PRECISION": precision, "STAGES": stages}
    signature = {**pointers, "n": "i32", **dict.fromkeys(constants, "constexpr")}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(3)}
    return ASTSource(dots, signature=signature, constexprs=constants, attrs=aligned)


def compiled(what, arch=75, options=None):
    """Matrix instructions and scalar multiply-adds of the machine code, or the error."""
    try:
        kernel = triton.compile(what, target=GPUTarget("cuda", arch, 32), options=options)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    cost = inspect_ptx(kernel.asm["ptx"], f"sm_{arch}")
    sass = {op: n for op, n in sorted(cost.instructions.items()) if op.startswith(("HMMA", "IMMA", "FFMA", "LDGSTS"))}
    return {"hash": kernel.hash, "shared": kernel.metadata.shared, "sass": sass}


def main():
    """Everything, before and after the hook."""
    knobs.compilation.always_compile = True
    plain = source(*KINDS["fp16-fp32"])
    result = {"triton": triton.__version__, "stock": {str(a): compiled(plain, a) for a in (75, 80)}}
    before = []
    knobs.runtime.add_stages_inspection_hook = lambda *args: before.append(len(args)) or ("", "h")
    hook.enable()
    hook.enable()
    result["turing"] = {name: compiled(source(*kind)) for name, kind in KINDS.items()}
    staged = triton.compile(plain, target=GPUTarget("cuda", 75, 32), options={"num_stages": 2})
    ttgir = staged.asm["ttgir"]
    loop = ttgir[ttgir.index("scf.for") :]
    result["staged"] = {
        **compiled(plain, options={"num_stages": 2}),
        "load_before_dot": loop.index("tt.load") < loop.index("tt.dot"),
        "store_after_dot": loop.index("ttg.local_store") > loop.index("tt.dot"),
    }
    result["other"] = {"80": compiled(plain, 80)}
    signature = {"a": "*fp16", "c": "*fp16", "N": "constexpr"}
    result["hungry"] = compiled(ASTSource(hungry, signature=signature, constexprs={"N": 256}))
    result["chained_calls"] = before.count(5)
    hook.disable()
    result["after"] = {"75": compiled(plain)}
    json.dump(result, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
