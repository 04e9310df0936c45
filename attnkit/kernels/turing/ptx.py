"""PTX for sm_75 out of PTX that Triton laid out for sm_80: pure text, no Triton and no GPU.

Triton lowers a dot product to sm_80's `mma.sync.m16n8k16`. Turing has the half-depth form, and the register fragments are
those of the deep form split in two, so one deep multiply is two shallow ones (PTX ISA, "Matrix fragments for mma"):

    m16n8k16 f16:  A {a0 a1 a2 a3}, B {b0 b1}   ->   m16n8k8:  {a0 a1} {b0},  then {a2 a3} {b1}
    m16n8k32 s8:   A {a0 a1 a2 a3}, B {b0 b1}   ->   m8n8k16:  rows 0-7: a0 b0, a2 b1;  rows 8-15: a1 b0, a3 b1

Everything else that sm_75 lacks is refused by name; nothing is passed through in the hope that ptxas objects.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from attnkit.errors import UnsupportedError

TARGET = "sm_75"
SHARED_MEMORY_LIMIT = 64 * 1024
"""Bytes of shared memory a block may have on sm_75 (CUDA C++ Programming Guide, table of compute capabilities)."""

_OPERANDS = r"\s*\{([^{}]*)\}\s*"
_MMA = re.compile(r"(?P<op>\bmma\.[\w.:]+)" + ",".join([_OPERANDS] * 4) + ";")
_OPCODE = re.compile(r"^\s*(?:\{\s*)?(?:@!?[%\w]+\s+)?([a-z][a-z0-9_]*(?:[.:][\w:]+)*)(?=[\s;])", re.MULTILINE)
_TARGET_LINE = re.compile(r"^\s*\.target\s+(\S+?)(?:,.*)?$", re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)

_F16 = re.compile(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.(f32|f16)\.f16\.f16\.(f32|f16)")
_S8 = re.compile(r"mma\.sync\.aligned\.m16n8k32\.row\.col(\.satfinite)?\.s32\.([su]8)\.([su]8)\.s32")
_TURING_MMA = re.compile(
    r"mma\.sync\.aligned\.(m16n8k8\.row\.col\.(f32|f16)\.f16\.f16\.(f32|f16)"
    r"|m8n8k16\.row\.col(\.satfinite)?\.s32\.[su]8\.[su]8\.s32)"
)


@dataclass(frozen=True)
class Lack:
    """An instruction that sm_75 does not have.

    Args:
        pattern: matches the whole opcode with its modifiers.
        what: the end of "sm_75 has no …".
        advice: what to do instead.
    """

    pattern: str
    what: str
    advice: str = ""


_NO_POLICY = "leave eviction_policy out"
_HALF = "cast the operands to float16"
_LACKS = tuple(
    (re.compile(lack.pattern), lack)
    for lack in (
        Lack(r"w?mma\.(.*\.)?bf16\b.*", "bfloat16 tensor cores", _HALF),
        Lack(r"w?mma\.(.*\.)?tf32\b.*", "tf32 tensor cores", f"{_HALF}, or ask tl.dot for input_precision='ieee'"),
        Lack(r"w?mma\.(.*\.)?e[2-5]m[0-9]\b.*", "float8 tensor cores", _HALF),
        Lack(r"w?mma\.(.*\.)?f64\b.*", "float64 tensor cores", "use float32 without tl.dot"),
        Lack(r"w?mma\.(.*)", "such matrix instruction", f"{_HALF} or int8"),
        Lack(r"(wgmma|tcgen05)\..*", "warp-group or tensor-memory matrix instructions"),
        Lack(r"cp\.(async|reduce).*", "asynchronous copies", "num_stages=1"),
        Lack(r"mbarrier\..*", "asynchronous barriers"),
        Lack(r"(barrier\.cluster|mapa|getctarank|griddepcontrol|clusterlaunchcontrol)\b.*", "clusters or dependent launch"),
        Lack(r"(fence|membar)\.(proxy|mbarrier_init|cluster|.*\.cluster).*", "proxies or clusters to fence"),
        Lack(r"(setmaxnreg|elect|stmatrix|tensormap|multimem|discard|applypriority)\b.*", "such instruction"),
        Lack(r"(red|st)\.(async|bulk).*", "asynchronous stores"),
        Lack(r"redux\..*", "warp-wide reduction instruction", "reduce with shuffles"),
        Lack(r"createpolicy\..*", "L2 cache policies", _NO_POLICY),
        Lack(r"(ld|st|atom|red|prefetch)\b.*\bL2::(cache_hint|evict_\w+|256B).*", "L2 cache hints", _NO_POLICY),
        Lack(r"(ld|st|atom|red)\..*shared::cluster.*", "clusters"),
        Lack(r"(ld|st)\..*\bv8\..*|(ld|st)\.global.*\bv4\.[bufs]64", "256-bit memory accesses"),
        Lack(r"(atom|red)\..*\.(v2|v4|v8)\..*", "vector atomics"),
        Lack(r"ldmatrix\.(?!sync\.aligned\.m8n8\.x[124](\.trans)?\.shared(::cta)?\.b16$).*", "such form of ldmatrix"),
        Lack(r"cvt\.(.*\.)?(bf16|bf16x2|tf32|ue8m0x2|e[2-5]m[0-9]x[24])\b.*", "bfloat16, tf32 or float8 conversions", _HALF),
        Lack(r"cvt\..*(relu|satfinite\.f16x2).*|cvt\.rn\.f16x2\.f32|cvt\.rz\.f16x2\.f32", "packed or clamped conversions"),
        Lack(r"(min|max)\.(.*\.)?(NaN|xorsign)\b.*", "NaN-propagating minimum and maximum", "handle NaN with a select"),
        Lack(r"(min|max)\.(ftz\.)?f16(x2)?", "float16 minimum and maximum", "compare in float32"),
        Lack(r"(min|max)\.[su]16x2", "packed integer minimum and maximum"),
        Lack(r"fma\..*relu.*", "clamped multiply-add"),
        Lack(r"(add|sub|mul|fma|min|max)\.(.*\.)?f32x2", "packed float32 arithmetic"),
        Lack(r"\w+\.(.*\.)?bf16(x2)?(\..*)?", "bfloat16 arithmetic", _HALF),
    )
)


def legalise(ptx: str) -> str:
    """Rewrite PTX to what sm_75 has, and check that nothing else is left in it.

    Args:
        ptx: a module for `.target sm_75`, its matrix instructions laid out for sm_80.

    Returns:
        The module, with every matrix instruction in a form sm_75 has. Applying it twice changes nothing.

    Raises:
        UnsupportedError: the module is for another target or holds an instruction that sm_75 lacks; the message names it.
    """
    targets = _TARGET_LINE.findall(ptx)
    if targets != [TARGET]:
        raise UnsupportedError(f"Turing code generation: .target is {', '.join(targets) or 'missing'}; must be {TARGET}")
    rewritten = _MMA.sub(_shallow, ptx)
    check(rewritten)
    return rewritten


def opcodes(ptx: str) -> Counter[str]:
    """How often each opcode, modifiers included, occurs in a PTX module."""
    return Counter(_OPCODE.findall(_COMMENT.sub("", ptx).replace(";", ";\n")))


def check(ptx: str) -> None:
    """Refuse what sm_75 lacks.

    Raises:
        UnsupportedError: names the first few instructions sm_75 does not have and what to do instead.
    """
    found: list[str] = []
    for opcode in opcodes(ptx):
        lack = _lack(opcode)
        if lack is not None:
            advice = f"; {lack.advice}" if lack.advice else ""
            found.append(f"sm_75 has no {lack.what} ({opcode}){advice}")
    if found:
        raise UnsupportedError("Turing code generation: " + ". ".join(found[:4]))


def _lack(opcode: str) -> Lack | None:
    if _TURING_MMA.fullmatch(opcode):
        return None
    return next((lack for pattern, lack in _LACKS if pattern.fullmatch(opcode)), None)


def _shallow(match: re.Match[str]) -> str:
    """The half-depth instructions of one deep matrix instruction; anything else unchanged, for `check` to judge."""
    op = match["op"]
    d, a, b, c = ([r.strip() for r in group.split(",")] for group in match.groups()[1:])
    if f16 := _F16.fullmatch(op):
        small = f"mma.sync.aligned.m16n8k8.row.col.{f16[1]}.f16.f16.{f16[2]}"
        return _chain(small, d, ((a[:2], b[:1]), (a[2:], b[1:])), c, clobbers=a[2:] + b[1:])
    if s8 := _S8.fullmatch(op):
        small = f"mma.sync.aligned.m8n8k16.row.col{s8[1] or ''}.s32.{s8[2]}.{s8[3]}.s32"
        upper = _chain(small, d[:2], ((a[:1], b[:1]), (a[2:3], b[1:])), c[:2], clobbers=a[1:] + b + c[2:])
        lower = _chain(small, d[2:], ((a[1:2], b[:1]), (a[3:], b[1:])), c[2:], clobbers=a[3:] + b[1:])
        return f"{upper}\n\t{lower}"
    return match[0]


def _chain(op: str, d: list[str], steps: tuple[tuple[list[str], list[str]], ...], c: list[str], clobbers: list[str]) -> str:
    """d = c + the sum over steps of A·B. `clobbers`: registers still read after the first write to d."""
    if set(d) & set(clobbers):
        # Never seen from Triton, whose results have registers of their own. A copy here could not keep two halves apart
        # safely, so it is refused and not guessed at.
        raise UnsupportedError(f"Turing code generation: {op} would overwrite its own operands ({', '.join(d)})")
    lines: list[str] = []
    for a, b in steps:
        lines.append(f"{op} {_set(d)}, {_set(a)}, {_set(b)}, {_set(c)};")
        c = d
    return "\n\t".join(lines)


def _set(registers: list[str]) -> str:
    return "{ " + ", ".join(registers) + " }"
