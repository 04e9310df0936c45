"""How CUDA numbers different GPUs: by speed, unless CUDA_DEVICE_ORDER=PCI_BUS_ID asks for the order of addresses.

CUDA does not say how it measures speed ("a simple heuristic"), so only a clear difference is taken for known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from attnkit.hardware.device import Device

_CLEAR = 1.5
"""One GPU is taken for faster than another where it computes this many times as fast."""

# float32 TFLOPS of products by name, from the vendor's data sheets; what NVML or the id table does not tell.
_TFLOPS = (
    (r"\bT4\b", 8.1),
    (r"P100", 10.6),
    (r"P40\b", 12.0),
    (r"V100|TITAN V", 15.7),
    (r"\bA2\b", 4.5),
    (r"A16\b", 4.5),
    (r"\bA30\b", 10.3),
    (r"\bA10\b|A10G", 31.2),
    (r"\bA40\b|RTX A6000", 38.0),
    (r"\bA[18]00\b", 19.5),
    (r"\bL4\b", 30.3),
    (r"\bL40S?\b|RTX 6000 Ada", 91.0),
    (r"\bH20\b", 44.0),
    (r"\b(?:H100|H200|H800|GH200)\b", 60.0),
    (r"\b(?:B200|B100|GB200|B300|GB300)\b", 75.0),
    (r"RTX PRO 6000", 120.0),
    (r"GTX 16|GT 10|GT 7|Quadro P|Quadro K|\bT[46]00\b|\bT1000\b|NVS", 4.0),
    (r"GTX 10\d0|Quadro RTX 4000", 8.0),
    (r"RTX 20[678]0|Quadro RTX", 10.0),
    (r"RTX 2080 Ti|TITAN RTX", 14.0),
    (r"RTX 30[56]0", 11.0),
    (r"RTX 3070", 20.0),
    (r"RTX 30[89]0", 33.0),
    (r"RTX 40[56]0", 17.0),
    (r"RTX 4070", 32.0),
    (r"RTX 4080", 49.0),
    (r"RTX 4090", 82.0),
    (r"RTX 50[56]0", 20.0),
    (r"RTX 5070", 35.0),
    (r"RTX 5080", 56.0),
    (r"RTX 5090", 105.0),
)


def cuda_order(gpus: Sequence[Device], order: str | None) -> list[Device] | None:
    """The GPUs as CUDA numbers them, or None where that cannot be known.

    Args:
        gpus: the GPUs that CUDA can use, in the order of their PCI addresses.
        order: CUDA_DEVICE_ORDER.
    """
    if order == "PCI_BUS_ID" or len({(gpu.arch, gpu.name) for gpu in gpus}) <= 1:
        return list(gpus)
    speeds = {gpu.name: _speed(gpu.name) for gpu in gpus}
    known = sorted((speed for speed in speeds.values() if speed is not None), reverse=True)
    clear = all(fast >= _CLEAR * slow for fast, slow in pairwise(known))
    if len(known) < len(speeds) or not clear:
        return None
    return sorted(gpus, key=lambda gpu: -(speeds[gpu.name] or 0))  # equal ones stay in the order of their addresses


def _speed(name: str) -> float | None:
    return next((tflops for pattern, tflops in _TFLOPS if re.search(pattern, name)), None)
