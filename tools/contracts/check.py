"""One contract checked: the backend's own `run`, on every call of calls.py, against the signatures of the package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from importlib import metadata
from pathlib import Path
from typing import Any

from attnkit.backends.base import Provider
from attnkit.backends.registry import get
from attnkit.backends.versions import split_requirement
from attnkit.hardware.device import Device
from attnkit.spec import AttentionOutput, Call
from tools.contracts.calls import calls
from tools.contracts.fetch import fetch
from tools.contracts.package import Package
from tools.contracts.stand_in import Bound, ContractError, Recorder, standing_in
from tools.contracts.table import Contract

_ROUNDING = 2**-6  # two roundings to bfloat16
_VENDORS = {"sm_": "nvidia", "gfx": "amd", "xe-": "intel", "x86": "cpu"}


@dataclass(frozen=True)
class Check:
    """What came of one contract.

    Args:
        detail: how many calls bound to which functions, or what does not fit.
    """

    backend: str
    provider: str
    package: str
    version: str
    ok: bool
    detail: str


def check(contract: Contract, cache: Path) -> Check:
    """Check `contract` against its package, downloaded to `cache` where it is not there; the installed one where it says so.

    Raises:
        UsageError: the package cannot be downloaded.
    """
    if contract.installed:
        return _check_installed(contract)
    return check_file(contract, fetch(contract.package, contract.version, cache))


def _check_installed(contract: Contract) -> Check:
    import torch

    backend = get(contract.backend)
    provider = next(p for p in backend.providers if p.name == contract.provider)
    count, worst = 0, 0.0
    problem = None
    with _on(contract.arch) as device:
        made = tuple(calls(provider.capability, device))
        found = [backend.run(call, provider.name).out for _, call in made]
    for (name, call), out in zip(made, found, strict=True):
        expected = get("TORCH_SDPA").run(call).out
        error = (out.float() - expected.float()).abs().max().item() if out.shape == expected.shape else float("inf")
        count, worst = count + 1, max(worst, error)
        if not error <= _ROUNDING * expected.float().abs().max().item() + 1e-5:
            problem = problem or f"{name}: off by {error} from TORCH_SDPA"
    version = metadata.version(contract.package)
    detail = problem or f"{count} calls run on CPU tensors on torch {torch.__version__}, at most {worst:.2g} from TORCH_SDPA"
    return Check(contract.backend, contract.provider, contract.package, version, problem is None, detail)


def check_file(contract: Contract, file: Path) -> Check:
    """Check `contract` against the wheel or source distribution `file`."""
    package = Package(file, contract.roots)
    try:
        detail = _check(contract, package)
    except (ContractError, ImportError) as error:
        return Check(contract.backend, contract.provider, contract.package, package.version, False, str(error))
    return Check(contract.backend, contract.provider, contract.package, package.version, True, detail)


def _check(contract: Contract, package: Package) -> str:
    backend = get(contract.backend)
    provider = next(p for p in backend.providers if p.name == contract.provider)
    _check_requirements(provider, package)
    for module, lines in contract.facts.items():
        source = " ".join(package.source(module).split())
        for line in lines:
            if line not in source:
                raise ContractError(f"{module} no longer says {line!r}")
    for (extension, operator), schema in contract.operators.items():
        found = package.operator(extension, operator)
        if found != operator + schema:
            raise ContractError(f"{extension} registers {found or 'no ' + operator}, not {operator}{schema}")
    recorder = Recorder(package, contract.returns)
    landed: set[tuple[str, str]] = set()
    count = 0
    with standing_in(recorder), _on(contract.arch) as device:
        for name, call in calls(provider.capability, device):
            before = len(recorder.calls)
            out = backend.run(call, provider.name)
            _check_output(name, call, out)
            bound = recorder.calls[before:]
            if not bound:
                raise ContractError(f"{name}: nothing of {package.name} was called")
            for one in bound:
                landed |= _check_landing(name, call, one, contract)
            count += 1
    for function, parameters in contract.lands.items():
        never = sorted(p for p in parameters if (function, p) not in landed)
        if never:
            raise ContractError(f"{function}: nothing of any call arrived in {', '.join(never)}")
    functions = sorted({bound.function for bound in recorder.calls})
    return f"{count} calls bound to {', '.join(functions)}"


def _check_requirements(provider: Provider, package: Package) -> None:
    """Compiled modules that a provider requires by name ("vllm._flashmla_C") are in the package."""
    for text in provider.requires:
        name, _ = split_requirement(text)
        if "." in name and name.split(".", 1)[0] in package.roots and package.extension(name) is None:
            raise ContractError(f"{package.name} {package.version} has no compiled module {name}")


def _check_output(name: str, call: Call, out: AttentionOutput) -> None:
    shape = call.out_shape
    if tuple(out.out.shape) != shape:
        raise ContractError(f"{name}: run gives {tuple(out.out.shape)}, not {shape}")
    if "lse" in call.spec().features and (out.lse is None or tuple(out.lse.shape) != shape[:2]):
        raise ContractError(f"{name}: run gives no log-sum-exp of shape {shape[:2]}")


def _check_landing(name: str, call: Call, bound: Bound, contract: Contract) -> set[tuple[str, str]]:
    """Which of `contract.lands` this call shows.

    Raises:
        ContractError: another value arrived where a field of the call should.
    """
    shown = set()
    for parameter, path in contract.lands.get(bound.function, {}).items():
        if parameter not in bound.arguments or not _has(call, path):
            continue
        wanted, got = _field(call, path), bound.arguments[parameter]
        if wanted is None and got is None:
            continue
        if not _same(got, wanted):
            raise ContractError(f"{name}: {bound.function} gets something other than call.{path} as {parameter}")
        shown.add((bound.function, parameter))
    return shown


def _has(call: Call, path: str) -> bool:
    return hasattr(call, path.split(".", 1)[0])


def _field(call: Call, path: str) -> Any:
    return reduce(getattr, path.split("."), call)


def _same(got: Any, wanted: Any) -> bool:
    import torch

    if isinstance(got, torch.Tensor) and isinstance(wanted, torch.Tensor):
        return got is wanted or (got.shape == wanted.shape and got.dtype == wanted.dtype and torch.equal(got, wanted))
    return type(got) is type(wanted) and bool(got == wanted)


@contextmanager
def _on(arch: str) -> Iterator[Device]:
    """Inside, CPU tensors pass for tensors on a device of architecture `arch`; nothing of the device is used."""
    from attnkit.backends import torch_device

    vendor: Any = _VENDORS[arch[:3]]
    device = Device(vendor=vendor, kind="cpu" if vendor == "cpu" else "gpu", name=arch, arch=arch, units=148, source="contract")
    device_of = torch_device.device_of
    torch_device.device_of = lambda tensor: device
    try:
        yield device
    finally:
        torch_device.device_of = device_of
