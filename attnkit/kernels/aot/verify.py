"""Compares a directory of compiled kernels with its manifest, and the manifest with the plan."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnkit.kernels.aot.files import MANIFEST, facts
from attnkit.spec import Call

if TYPE_CHECKING:
    from attnkit.kernels.aot.variants import BootCalls
from attnkit.kernels.aot.manifest import KernelsError, Manifest, load
from attnkit.kernels.aot.plan import list_kernels


def verify(
    directory: str | Path,
    targets: Sequence[str] | None = None,
    *,
    calls: Iterable[Call] | None = None,
    boot: BootCalls | None = None,
    planned: bool = True,
) -> Manifest:
    """Compare a kernel directory with its manifest, and the manifest with what the planners want now.

    Args:
        targets: targets that must be covered; None takes those of the manifest.
        calls, boot: what it was built from, apart from its geometries.
        planned: also plan every variant again (imports torch and Triton) and require each; needs geometries, `calls` or `boot`.

    Raises:
        KernelsError: a kernel is missing, empty or altered, a target is not covered, or Triton or Python differ.
    """
    root = Path(directory)
    manifest = load(root)
    wanted = tuple(manifest.targets if targets is None else targets)
    problems = [f"target {t} was not built" for t in wanted if t not in manifest.targets]
    for kernel in manifest.kernels:
        problems += _altered(root / kernel.key, kernel.files, f"{kernel.target} {kernel.name}")
        if kernel.binary not in kernel.files:
            problems.append(f"{kernel.target} {kernel.name}: no machine code")
    problems += _altered(root, manifest.launchers, "launcher")
    problems += _added(root, manifest)
    if not manifest.kernels:
        problems.append("the manifest lists no kernel")
    if manifest.python != (sysconfig.get_config_var("EXT_SUFFIX") or "") and manifest.launchers:
        problems.append(f"launchers were built for {manifest.python}; this Python wants another suffix")
    if planned and not problems:
        problems += _unplanned(manifest, wanted, calls, boot)
    if problems:
        raise KernelsError(f"{root}: {len(problems)} problem(s): " + "; ".join(problems[:20]))
    return manifest


def _altered(folder: Path, files: dict[str, tuple[int, str]], what: str) -> list[str]:
    problems: list[str] = []
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{what}: {name} is missing")
        elif path.stat().st_size == 0 or size == 0:
            problems.append(f"{what}: {name} is empty")
        elif facts(path) != (size, digest):
            problems.append(f"{what}: {name} was altered")
    return problems


def _added(root: Path, manifest: Manifest) -> list[str]:
    """What lies in the directory and is in no manifest: nobody knows what it does where it is loaded."""
    known: dict[str, set[str]] = {kernel.key: set(kernel.files) for kernel in manifest.kernels}
    for launcher in manifest.launchers:
        folder, _, name = launcher.rpartition("/")
        known.setdefault(folder, set()).add(name)
    problems = [f"{path.name} was added" for path in root.iterdir() if path.name not in {MANIFEST, *known}]
    for folder, names in known.items():
        if (root / folder).is_dir():
            problems += [f"{folder}/{path.name} was added" for path in (root / folder).iterdir() if path.name not in names]
    return sorted(problems)


def _unplanned(manifest: Manifest, targets: Sequence[str], calls: Iterable[Call] | None, boot: BootCalls | None) -> list[str]:
    """What the planners of this attnkit and Triton want and the manifest does not list."""
    from triton import __version__ as triton_version

    if triton_version != manifest.triton:
        return [f"built with Triton {manifest.triton}; installed is {triton_version}, whose keys differ"]
    if boot is not None and boot.level != manifest.level:
        return [f"the kernels of the boot's self-test are of level {manifest.level or 'none'}, not {boot.level}"]
    if not manifest.geometries and calls is None and boot is None:
        return []
    have = {(k.target, k.name) for k in manifest.kernels}
    wanted = list_kernels(targets, geometries=manifest.geometries, calls=calls, boot=boot)
    return [f"{v.target} {v.name} is missing from the kernel directory" for v in wanted if (v.target, v.name) not in have]
