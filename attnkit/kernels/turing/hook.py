"""Turing's tensor cores for any Triton kernel in this process.

Stock Triton compiles `tl.dot` for sm_75 to scalar multiply-adds. `enable()` installs a hook through Triton's public knob
`triton.knobs.runtime.add_stages_inspection_hook` that, for compute capability 7.5 alone,

1. lays the kernel out as for 8.0, so that the dot becomes matrix instructions, but without its software pipelining, which
   is made of asynchronous copies; a kernel launched with num_stages=2 is double-buffered through registers instead;
2. rewrites the PTX to the instructions of sm_75 and refuses what sm_75 lacks (`turing_ptx`);
3. refuses kernels that need more than 64 KB of shared memory, before anything is launched.

It serves our kernels and everybody else's (an engine's Triton attention, fused mixture-of-experts, torch.compile).
`emulate()` runs the same sm_75 code on a newer GPU, for tests.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any

from attnkit.errors import UnsupportedError
from attnkit.kernels.turing import ptx

CAPABILITY = 75
LAYOUT_CAPABILITY = 80
"""The capability whose layouts and dot lowering are borrowed: the first with m16n8k16."""

REGISTER_STAGES = 2
"""The num_stages that asks for double buffering through registers. Triton's default of 3 does not: it costs registers."""

TESTED_TRITON = ("3.6.0", "3.7.1", "3.8.0", "3.9.0")
"""The versions the tests of this module were run on. The hook works on compiler internals: others are refused."""


class _Hook:
    """The stage hook. One instance is installed; it calls the hook that it found first."""

    def __init__(self, previous: Callable[..., Any] | None) -> None:
        self.previous = previous

    def __call__(self, *args: Any) -> tuple[str, str] | None:
        if not args:  # Triton >= 3.7 asks what the hook adds to its keys
            key, digest = self.previous() if self.previous is not None else ("", "")
            # The part of the key on disk is added by `_keyed_hash`, for sm_75 alone; this one is for the process.
            return key, f"{digest}{_key()}"
        if self.previous is not None:
            self.previous(*args)
        backend, stages, options, _language, capability = args
        if capability == CAPABILITY:
            _turn(backend, stages, options)
        return None


STATE: dict[str, bool] = {"emulating": False, "stock": False}


def enable() -> None:
    """Install the hook. Call it before the first kernel is compiled; again is free.

    A hook that is already there keeps running, before ours. Capabilities other than 7.5 keep their code and cache keys.

    Raises:
        UnsupportedError: this Triton version was not tested, or Triton is missing.
    """
    knobs, backend = _triton()
    if not enabled():
        knobs.runtime.add_stages_inspection_hook = _Hook(knobs.runtime.add_stages_inspection_hook)
    if not hasattr(backend.hash, "attnkit_original"):
        backend.hash = _keyed_hash(backend.hash)


def disable() -> None:
    """Take the hook out again, where ours is the outermost; kernels compiled meanwhile stay as they are.

    Raises:
        UnsupportedError: somebody chained another hook onto ours, so that it cannot be taken out.
    """
    knobs, backend = _triton()
    hook = knobs.runtime.add_stages_inspection_hook
    if isinstance(hook, _Hook):
        knobs.runtime.add_stages_inspection_hook = hook.previous
    elif enabled():
        raise UnsupportedError("another stage hook was chained onto attnkit's; remove that one first")
    backend.hash = getattr(backend.hash, "attnkit_original", backend.hash)


def enabled() -> bool:
    """True where the hook, or a hook that keeps it as `.previous`, is installed."""
    from triton import knobs

    hook = knobs.runtime.add_stages_inspection_hook
    while hook is not None and not isinstance(hook, _Hook):
        hook = getattr(hook, "previous", None)
    return hook is not None


@cache
def _triton() -> tuple[Any, Any]:
    """Triton's knobs and its NVIDIA backend, of a version that was tested."""
    try:
        import triton
        from triton import knobs
        from triton.backends.nvidia.compiler import CUDABackend
    except ImportError as error:
        raise UnsupportedError(f"Turing's tensor cores need Triton ({error})") from None
    refuse_untested(triton.__version__)
    return knobs, CUDABackend


def refuse_untested(version: str) -> None:
    """Raise UnsupportedError unless this Triton version was tested with the hook; build suffixes (+git…) do not matter."""
    if version.partition("+")[0] not in TESTED_TRITON:
        raise UnsupportedError(
            f"Turing's tensor cores were not tested on Triton {version}; tested: {', '.join(TESTED_TRITON)}. "
            "Install one of these, or use TRITON_ATTN without tensor cores or XFORMERS"
        )


@cache
def _source_hash() -> str:
    files = (Path(__file__), Path(ptx.__file__))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


def _key() -> str:
    modes = "".join(f"-{mode}" for mode, on in STATE.items() if on)
    return f"-attnkit-turing-{_source_hash()}{modes}"


def _keyed_hash(original: Callable[[Any], str]) -> Callable[[Any], str]:
    """The backend's part of the cache key, with the hook in it for sm_75.

    Triton 3.6 never asks a stage hook for a key; later versions do, but add the answer for every target.
    """

    @wraps(original)
    def hash_(self: Any) -> str:
        base = original(self)
        return base + _key() if self.target.arch == CAPABILITY and enabled() else base

    hash_.attnkit_original = original  # type: ignore[attr-defined]
    return hash_


def _turn(backend: Any, stages: dict[str, Callable[..., Any]], options: Any) -> None:
    """Replace the stages of one compilation for sm_75."""
    stock_llir, stock_ptx, stock_cubin = stages["llir"], stages["ptx"], stages["cubin"]

    def cubin(text: str, metadata: dict[str, Any]) -> bytes:
        code: bytes = stock_cubin(text, metadata)
        return text.encode() + b"\0" if STATE["emulating"] else code

    stages["cubin"] = cubin
    if STATE["stock"]:
        return
    plain = replace(options, num_stages=1)
    if "ttir" in stages:  # not for Gluon, whose layouts are the author's own

        def ttgir(module: Any, metadata: dict[str, Any]) -> Any:
            laid_out = backend.make_ttgir(_edited(module, _loop_stages(1)), metadata, plain, LAYOUT_CAPABILITY)
            return _stage_through_registers(laid_out) if options.num_stages == REGISTER_STAGES else laid_out

        stages["ttgir"] = ttgir

    def llir(module: Any, metadata: dict[str, Any]) -> Any:
        _refuse_operations(str(module))
        text = stock_llir(module, metadata)
        if metadata["shared"] > ptx.SHARED_MEMORY_LIMIT:
            from triton.runtime.errors import OutOfResources

            raise OutOfResources(metadata["shared"], ptx.SHARED_MEMORY_LIMIT, "shared memory on sm_75")
        return text

    def sm_75_ptx(module: Any, metadata: dict[str, Any]) -> str:
        return ptx.legalise(stock_ptx(module, metadata))

    stages.update(llir=llir, ptx=sm_75_ptx)


_LOOP_STAGES = r"tt\.num_stages = \d+ : i32"
_TARGET = r'ttg\.target = "[^"]*"'
_REGISTER_PIPELINE_TARGET = "hip:gfx90a"
"""Any AMD target without asynchronous copies; Triton >= 3.8 lets its AMD passes run for no other."""


def _edited(module: Any, *edits: tuple[str, str]) -> Any:
    """The module with attributes replaced in its text: (pattern, replacement) each. The same object where nothing matches."""
    before = text = str(module)
    for pattern, replacement in edits:
        text = re.sub(pattern, replacement, text)
    if text == before:
        return module
    from triton._C.libtriton import ir

    with tempfile.NamedTemporaryFile("w", suffix=".mlir") as file:
        file.write(text)
        file.flush()
        turned = ir.parse_mlir_module(file.name, module.context)
    turned.context = module.context
    return turned


def _loop_stages(stages: int) -> tuple[str, str]:
    """The edit that sets the loops' own stage counts (`tl.range(num_stages=…)`), which win over the kernel's."""
    return _LOOP_STAGES, f"tt.num_stages = {stages} : i32"


def _stage_through_registers(laid_out: Any) -> Any:
    """Load the next tile into registers while this one is computed, and store it to shared memory after.

    Triton has a pass that does this for AMD's GPUs, many of which lack asynchronous copies as well; it works on the common
    dialect, whatever the target is.
    """
    from triton._C.libtriton import amd, ir, passes

    target = re.search(_TARGET, str(laid_out))
    if target is None:
        raise UnsupportedError("Turing code generation: the module names no target")
    module = _edited(laid_out, _loop_stages(REGISTER_STAGES), (_TARGET, f'ttg.target = "{_REGISTER_PIPELINE_TARGET}"'))
    manager = ir.pass_manager(module.context)
    amd.passes.ttgpuir.add_schedule_loops(manager, REGISTER_STAGES)
    amd.passes.ttgpuir.add_pipeline(manager, False, False)
    passes.common.add_canonicalizer(manager)
    passes.common.add_cse(manager)
    manager.run(module, "stage_through_registers")
    return _edited(module, (_TARGET, target[0]))


_NEWER_OPERATIONS = re.compile(r"(?:^|=)\s*\"?(ttg\.async_\w+|ttng\.\w+|ttg\.warp_specialize)\b", re.MULTILINE)


def _refuse_operations(ttgir: str) -> None:
    """Refuse what LLVM could not select for sm_75; it would end the process and not raise.

    Raises:
        UnsupportedError: names the operations.
    """
    found = sorted(set(_NEWER_OPERATIONS.findall(ttgir)))
    if found:
        raise UnsupportedError(f"Turing code generation: sm_75 has no {', '.join(found)}; write the kernel without them")


def emulating() -> bool:
    """True inside `emulate()`."""
    return STATE["emulating"]
