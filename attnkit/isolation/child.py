"""The child: `python -m attnkit.isolation.child FD`. It tests one candidate and reports on the pipe FD."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from attnkit.backends.base import Backend
from attnkit.backends.torch_device import torch_devices
from attnkit.errors import AttnkitError
from attnkit.hardware.device import Device
from attnkit.isolation.injected import break_process
from attnkit.isolation.lifeline import end_with_parent
from attnkit.isolation.messages import REQUEST, Request
from attnkit.jsonio import to_plain
from attnkit.selftest.results import CaseResult, Verdict
from attnkit.spec import AttentionSpec
from attnkit.wording import spec_text

GARBAGE = 100_000
"""Objects after which garbage is looked for (Python's own: 700 to 2000). Importing torch and vLLM makes a million that stay."""


def _watches_triton(device: Device) -> bool:
    """Whether Triton's kernels are counted: on GPUs, where it compiles, and where it is installed."""
    return device.kind == "gpu" and importlib.util.find_spec("triton") is not None


def _count_kernels(request: Request, send: Callable[[str, Any], None]) -> None:
    """Test with Triton's kernels taken from the directory $ATTNKIT_KERNELS, if it is set; count everything compiled."""
    if not _watches_triton(request.device):
        _work(request, send)
        send("kernels", {"baked": 0, "jit_compiles": _compiled_graphs()})
        return
    from attnkit.kernels.aot.use import count_kernels, use_precompiled, why_unused

    directory = os.environ.get("ATTNKIT_KERNELS")
    if directory:
        use_precompiled(directory)
    with count_kernels() as count:
        _work(request, send)
    why = why_unused(directory, count.jit_compiles) if directory and count.compiled and not count.precompiled else ""
    jit_compiles = count.jit_compiles + _compiled_graphs()
    send("kernels", {"baked": count.precompiled, "jit_compiles": jit_compiles, "unused": why})


def _compiled_graphs() -> int:
    """Graphs that torch.compile has captured in this process; 0 where it was never loaded."""
    loaded = sys.modules.get("torch._dynamo.utils")
    return int(loaded.counters["stats"]["unique_graphs"]) if loaded else 0


def _backend(name: str) -> Backend:
    """attnkit's backend, or vLLM's own where the name says so."""
    from attnkit.backends.registry import get
    from attnkit.engines.vllm import driver as vllm_driver

    return vllm_driver.engine_backend(name) if name.startswith(vllm_driver.PREFIX) else get(name)


def _inject_faults(request: Request, send: Callable[[str, Any], None]) -> None:
    from attnkit import selftest

    spec = request.specs[0] if request.specs else None
    backend = _backend(request.backend)
    for result in selftest.inject_faults(backend, request.device, spec, level=request.level, provider=request.provider):
        send("fault", result)


def _work(request: Request, send: Callable[[str, Any], None]) -> None:
    break_process(request.fault)
    names = torch_devices(request.device)
    for index, name in enumerate(names):  # one, whichever it is of the machine's, unless torch sees more than attnkit does
        device = request.device if name is None else replace(request.device, index=index)
        for spec in request.specs or (None,):
            verdict = _judge(request, device, spec, name, lambda case: send("case", case))
            verdict = replace(verdict, layer=spec_text(spec) if spec is not None else "")
            send("verdict", replace(verdict, device=f"{verdict.device} [{name}]") if len(names) > 1 else verdict)


def _judge(
    request: Request,
    device: Device,
    spec: AttentionSpec | None,
    torch_device: str | None,
    on_case: Callable[[CaseResult], None],
) -> Verdict:
    from attnkit import selftest
    from attnkit.engines.vllm import driver as vllm_driver

    if request.backend.startswith(vllm_driver.PREFIX):
        return vllm_driver.validate_engine_backend(
            request.backend,
            spec,
            request.level,
            device=device,
            fault=request.fault,
            on_case=on_case,
            torch_device=torch_device,
        )
    return selftest.run_selftest(
        _backend(request.backend),
        device,
        spec,
        level=request.level,
        fault=request.fault,
        provider=request.provider,
        on_case=on_case,
        torch_device=torch_device,
        seed=request.seed,
    )


def _simulate(answer: str, request: Request, send: Callable[[str, Any], None]) -> None:
    from attnkit.isolation import simulated

    simulated.run_simulated(
        answer, backend=request.backend, provider=request.provider, device=request.device, level=request.level, send=send
    )


def _main(descriptor: int) -> None:
    with os.fdopen(descriptor, "w", encoding="utf-8") as pipe:

        def send(kind: str, value: Any) -> None:
            pipe.write(json.dumps({kind: to_plain(value)}) + "\n")
            pipe.flush()

        end_with_parent()
        gc.set_threshold(GARBAGE)
        try:
            request = REQUEST.validate_json(sys.stdin.buffer.read())
            if request.planted_answer is not None:
                _simulate(request.planted_answer, request, send)
            elif request.inject_faults:
                _inject_faults(request, send)
            else:
                _count_kernels(request, send)
        except AttnkitError as error:
            send("usage", str(error))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
