"""What the bake of a TPU image holds: every Pallas kernel that the self-test of a boot launches, lowered without a TPU.

The counterpart of `bake`, for targets tpu-*: `attnkit kernels build|verify|list`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from attnkit.backends.pallas import CAPABILITY, signature
from attnkit.errors import UsageError, unknown_name
from attnkit.kernels.pallas import ahead
from attnkit.prebuilt.needs import LEVEL, needs
from attnkit.profiles.files import all_nodes
from attnkit.select.node import place
from attnkit.selftest.cases import cases
from attnkit.selftest.tensors import build as build_call
from attnkit.spec import PagedAttention


def covers(targets: Sequence[str]) -> bool:
    """Whether these targets are TPUs.

    Raises:
        UsageError: no node type has such a TPU; or some are TPUs and some are not: different compilers make them, for different
            images.
    """
    tpus = [target for target in targets if target.startswith("tpu")]
    if tpus and len(tpus) < len(targets):
        raise UsageError(f"TPUs and others do not go into one bake: {', '.join(targets)}")
    known = {arch for node in all_nodes() if node.platform == "tpu" for arch in node.match.arch}
    for target in tpus:
        if target not in known:
            raise unknown_name("target", target, known)
    return bool(tpus)


def signatures(targets: Sequence[str]) -> tuple[ahead.Signature, ...]:
    """Of every call that the self-test of a boot on these targets makes."""
    found: dict[ahead.Signature, None] = {}
    for target in targets:
        device = place(arch=target).device
        for need in needs(target):
            if CAPABILITY.reject(need, device):
                continue
            for case in cases(LEVEL, CAPABILITY, device, need):
                call = build_call(case)
                if isinstance(call, PagedAttention):
                    found[signature(call)] = None
    return tuple(found)


def build(
    targets: Sequence[str], directory: Path, *, on_module: Callable[[ahead.Module], None] | None = None
) -> ahead.Manifest:
    """Lower everything an image for `targets` needs, and verify it; errors as of `ahead.build` and `ahead.verify`."""
    wanted = signatures(targets)
    ahead.build(wanted, targets, directory, level=LEVEL, on_module=on_module)
    return ahead.verify(directory, targets, wanted, LEVEL)


def verify(directory: Path, targets: Sequence[str] | None = None) -> ahead.Manifest:
    """Hold a bake against its manifest, and the manifest against what a boot needs; errors as of `ahead.verify`."""
    asked = tuple(targets) if targets else ahead.read(directory).targets
    return ahead.verify(directory, asked, signatures(asked), LEVEL)
