"""Prints, as JSON, the base's largest and mean error for the calls in a file, and the error of this host's matrix product.

Usage: baseline_errors.py FILE (torch.save of calls by name). A process of its own, because the settings that pretend another
CPU are read when torch is loaded; the calls come from one place, because torch.randn itself follows the CPU in its last bits.
"""

from __future__ import annotations

import json
import sys

import torch

from attnkit.selftest.baseline import baselines
from attnkit.selftest.reference import reference


def main(path: str) -> None:
    """All of them."""
    found = {}
    for name, call in torch.load(path, weights_only=False).items():
        oracle = reference(call)
        off = [(base.out.double() - oracle.out).abs() for base in baselines(call)]
        # To seven digits: float64's own exponential may differ in its last bit, some 1e-9 of the errors here.
        found[name] = [float(f"{max(measure(e).item() for e in off):.7g}") for measure in (torch.max, torch.mean)]
    square = torch.arange(40000.0, dtype=torch.float64).sin().float().view(200, 200)
    found["torch.matmul"] = [((square @ square).double() - square.double() @ square.double()).abs().sum().item()]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
