"""One mutant in a process of its own: a copy of the mutated file in the package's place, and which case notices it.

The process is a fork of one that has torch, Triton and the self-test loaded, and nothing else in memory; what may be mutated is
loaded anew. A crash or an endless loop ends that process alone, and is noticed: no self-test that ends so is a pass.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import pickle
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from attnkit.backends.base import Backend, Provider
from attnkit.hardware.device import Device
from attnkit.selftest import runner
from attnkit.selftest.cases import Case, cases
from tools.mutate.families import Family
from tools.mutate.rules import Mutant

ROOT = Path(runner.__file__).resolve().parents[1]
"""The package."""
CPU = Device("cpu", "cpu", "CPU", platform.machine())
ISA = "avx2"
"""The instruction set of the C++ kernels that is compiled for a mutant: one takes seconds."""


@dataclass
class Result:
    """What became of a mutant.

    Args:
        family, name, rule: which.
        quick, standard: the case that noticed it, "crash", "no end" or "does not load"; None: nothing did. What quick notices
            standard does, which asks the same and more.
        asked, of: standard cases it was asked, of how many; 0 where quick noticed it.
        seconds: how long that took.
    """

    family: str
    name: str
    rule: str
    quick: str | None = None
    standard: str | None = None
    asked: int = 0
    of: int = 0
    seconds: float = 0.0


def try_out(name: str, family: Family, mutant: Mutant, keep: Path, seconds: float) -> Result:
    """Ask until a case notices; in this very process, which is not to be used for anything else afterwards.

    Args:
        keep: where questions with their answers are kept between processes.
        seconds: no further standard case after so long.
    """
    started = begun = time.monotonic()
    result = Result(name, mutant.name, mutant.rule)
    try:
        backend, provider = _load(family, mutant)
    except Exception as error:
        result.quick = result.standard = f"does not load: {type(error).__name__}"
        return result
    quick = quick_cases(family, provider)

    def notices(case: Case) -> bool:
        return _notices(backend, provider, case, keep) and _sound(family, case, keep)

    for case in quick:
        if notices(case):
            result.quick = result.standard = _name(case)
            break
    else:
        begun = time.monotonic()
        standard = standard_cases(family, provider, mutant.before + mutant.path, quick)
        result.of = len(standard)
        for case in standard:
            if time.monotonic() - begun > seconds:
                break
            result.asked += 1
            if notices(case):
                result.standard = _name(case)
                break
    result.seconds = round(time.monotonic() - started, 1)
    return result


def quick_cases(family: Family, provider: Provider) -> list[Case]:
    """Of every need that is claimed, small ones first."""
    capability = provider.capability
    needs = [need for need in family.needs if not capability.reject(need, CPU)]
    return sorted((case for need in needs for case in cases("quick", capability, CPU, need)), key=_work)


def standard_cases(family: Family, provider: Provider, hint: str, asked: list[Case]) -> list[Case]:
    """Those of the standard level beyond `asked`: first what has to do with the words of `hint`, and small ones first."""
    words = set(re.findall(r"[a-z0-9]{3,}", hint.lower()))
    known = {(case.name, case.op, case.dtype) for case in asked}

    def order(case: Case) -> tuple[int, float]:
        about = set(re.findall(r"[a-z0-9]{3,}", f"{case.name} {case.guards} {case.kv_cache_dtype}".lower()))
        return -len(about & words), _work(case)

    found = [
        case for case in cases("standard", provider.capability, CPU, None) if (case.name, case.op, case.dtype) not in known
    ]
    return sorted((case for case in found if max(total for _, total in case.seqs) <= family.longest), key=order)


def _work(case: Case) -> float:
    return sum((new + 8) * (total + 32) for new, total in case.seqs) * case.heads * case.head_dim


def _name(case: Case) -> str:
    return f"{case.op}-{case.name}-{case.dtype}"


def _notices(backend: Backend, provider: Provider, case: Case, keep: Path) -> bool:
    question = _question(case, keep)
    return isinstance(question, str) or runner._examine(backend, provider, question, "cpu").outcome == "fail"


def _sound(family: Family, case: Case, keep: Path) -> bool:
    """Whether the unchanged code passes the case, asked in a process of its own: what always fails notices nothing."""
    mark = keep / f"{family.provider}-{family.backend}-{len(family.patches)}-{_name(case)}.{_digest(case)}"
    if not mark.exists():
        child = os.fork()
        if child == 0:
            sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Instead)]
            try:
                os._exit(_notices(*_load(family, None), case, keep))
            except BaseException:
                os._exit(3)
        _, status = os.waitpid(child, 0)
        mark.write_text(str(os.waitstatus_to_exitcode(status)))
    return mark.read_text() == "0"


def _digest(case: Case) -> str:
    return hashlib.sha256(repr(sorted(asdict(case).items())).encode()).hexdigest()[:24]


def _question(case: Case, keep: Path) -> Any:
    """The question with its right answer, kept in a file; those of a cache past 2**31 elements are made each time."""
    if case.far:
        return runner._ask(case, "cpu")
    file = keep / _digest(case)
    if file.exists():
        return torch.load(file, weights_only=False)
    question = runner._ask(case, "cpu")
    fresh = file.with_suffix(f".{os.getpid()}")
    torch.save(question, fresh, pickle_protocol=pickle.HIGHEST_PROTOCOL)
    fresh.replace(file)
    return question


_KEPT = ("attnkit.backends.base", "attnkit.backends.versions")


def _load(family: Family, mutant: Mutant | None) -> tuple[Backend, Provider]:
    """The backend, from modules that are loaded anew, one of them mutated."""
    for name in [n for n in sys.modules if n.startswith(("attnkit.backends.", "attnkit.kernels."))]:
        if name not in _KEPT:
            parent, _, child = name.rpartition(".")
            sys.modules.pop(name)
            if parent in sys.modules:
                vars(sys.modules[parent]).pop(child, None)
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    if mutant is not None and mutant.path.endswith(".py"):
        source = mutant.applied((ROOT / mutant.path).read_text(encoding="utf-8"))
        compile(source, mutant.path, "exec")
        file = folder / Path(mutant.path).name
        file.write_text(source, encoding="utf-8")
        sys.meta_path.insert(0, _Instead("attnkit." + mutant.path[:-3].replace("/", "."), file))
    if family.provider == "attnkit-cpu":
        _use_library(folder, mutant)
    for name, value in family.patches.items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)
    registry: Any = importlib.import_module("attnkit.backends.registry")
    backend: Backend = registry.get(family.backend)
    return backend, next(p for p in backend.providers if p.name == family.provider)


class _Instead:
    """Finds one module in another file."""

    def __init__(self, name: str, file: Path) -> None:
        self.name, self.file = name, file

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.file) if name == self.name else None


def _use_library(folder: Path, mutant: Mutant | None) -> None:
    """The C++ kernels with the change, compiled for `ISA` alone, in the place of the library that is installed."""
    from attnkit.kernels.cpu import build, library

    sources = {name: (library.FOLDER / name).read_text(encoding="utf-8") for name in library.SOURCES}
    if mutant is not None and not mutant.path.endswith(".py"):
        name = Path(mutant.path).name
        sources[name] = mutant.applied(sources[name])
    for name, text in sources.items():
        (folder / name).write_text(text, encoding="utf-8")
    known = hashlib.sha256("".join(sources.values()).encode()).hexdigest()[:16]
    made = Path(tempfile.gettempdir(), f"mutant-{known}.so")
    if not made.exists():
        others = [isa for isa in build.INSTRUCTION_SETS["x86_64"] if isa != ISA]
        (folder / "others.cpp").write_text(
            '#include "abi.h"\nnamespace attnkit {\n'
            + "".join(f'extern const Kernel {isa};\nconst Kernel {isa} = {{"{isa}", nullptr, nullptr}};\n' for isa in others)
            + "}\n"
        )
        flags = [flag for flag in build.FLAGS if flag != "-O3"] + ["-O1", *build.INSTRUCTION_SETS["x86_64"][ISA]]
        fresh = folder / "library.so"
        files = [str(folder / name) for name in ("attention.cpp", "dispatch.cpp", "others.cpp")]
        command = [build.compiler(), *flags, f"-DATTNKIT_KERNEL={ISA}", "-shared", "-o", str(fresh), *files, "-ldl", "-pthread"]
        subprocess.run(command, check=True, capture_output=True)
        fresh.replace(made)
    loaded = library.load(made)
    library._library = lambda: loaded  # type: ignore[assignment]
    os.environ[library.ISA_VARIABLE] = ISA
    torch.set_num_threads(2)  # contexts are cut between threads


def every(families: dict[str, Family]) -> Iterator[tuple[str, Family, Mutant]]:
    """Every mutant of these families, families in turn."""
    from tools.mutate import by_hand, rules

    queues = []
    for name, family in families.items():
        found = by_hand.mutants(ROOT, name)
        for source, most in family.sources.items():
            path, _, functions = source.partition("::")
            found += rules.mutants(ROOT, path, most, tuple(filter(None, functions.split(","))))
        queues.append([(name, family, mutant) for mutant in found])
    while any(queues):
        for queue in queues:
            if queue:
                yield queue.pop(0)
