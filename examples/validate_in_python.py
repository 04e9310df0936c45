"""The self-test of one backend, for the geometry of one model, on the CPU.

    python examples/validate_in_python.py

`attnkit selftest` and `attnkit boot` do the same in a process of its own, on every device of the machine.
"""

from attnkit.backends.registry import get
from attnkit.hardware import detect
from attnkit.selftest import run_selftest
from attnkit.spec import AttentionSpec

device = next(device for device in detect().devices if device.kind == "cpu")
geometry = AttentionSpec(dtype="bfloat16", num_heads=4, num_kv_heads=2, head_dim=64)
verdict = run_selftest(get("TORCH_SDPA"), device, geometry, level="quick")
for case in verdict.cases:
    print(f"{case.outcome}  {case.case}  largest error {case.max_error:.2e}, bound {case.max_bound:.2e}  ({case.kernel})")
print(f"{verdict.backend} on {verdict.device}: {verdict.outcome}")
