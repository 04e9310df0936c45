"""What a vLLM version calls a backend, and the switch that makes it take it.

The facts are in data/vllm-names.yaml: the enum of 31 versions, how each treats VLLM_ATTENTION_BACKEND, what replaced what. A
switch that a version ignores is never given: from 0.15 on the variable does nothing, and on CPU and TPU vLLM silently runs its
own whatever it is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

from attnkit.backends.registry import all_backends, get, spellings
from attnkit.errors import InconclusiveError, UsageError, unknown_name

VARIABLE = "VLLM_ATTENTION_BACKEND"
_SUFFIX = "_VLLM_V1"

VENDORS = {"cuda": "nvidia", "rocm": "amd", "xpu": "intel", "tpu": "google", "cpu": "cpu"}
"""vLLM's platforms and the vendor of their devices."""

_RENAMED = {"ROCM_FLASH": "ROCM_ATTN"}
"""Same thing under a new name, where the version has it."""

_UNUSABLE_FROM = {"NO_ATTENTION": "0", "DUAL_CHUNK_FLASH_ATTN": "0.11.0", "DIFFERENTIAL_FLASH_ATTN": "0.11.0"}
"""In the enum from this version on, but without code behind it."""

_CPU_RENAME = Version("0.11.1")  # TORCH_SDPA became CPU_ATTN
_CPU_MLA = {
    "CPU_MLA": " for MLA models where the processor has no AMX",
    "AMX_MLA": " for MLA models where the processor has AMX",
}
_XPU_NAMES = ("FLASH_ATTN", "TRITON_ATTN", "TRITON_MLA", "FLASH_ATTN_MLA")


@dataclass(frozen=True)
class Resolution:
    """What to tell a vLLM version.

    Args:
        name: as asked, in canonical spelling.
        vllm_version: as asked.
        flag: command-line arguments, None where none is to be given.
        env: environment variables, None where none is to be given.
        now: what vLLM runs: the name in this version, or what replaced it; None: nothing does.
        note: what else there is to know.
        ok: True where this vLLM runs what was asked for, with the switch given (or with none, where it needs none).
    """

    name: str
    vllm_version: str
    flag: list[str] | None
    env: dict[str, str] | None
    now: str | None
    note: str
    ok: bool


def resolve(name: str, version: str, platform: str = "cuda") -> Resolution:
    """The switch that makes vLLM `version` take backend `name` on `platform`.

    Args:
        name: any spelling that attnkit or any vLLM version knows, in any letter case.
        version: a vLLM version ("0.33.0"). Between two known versions the earlier one's names hold, and the note says so.
        platform: cuda, rocm, xpu, tpu or cpu.

    Raises:
        UsageError: an unknown name or platform, not a version, or a version older than all that are known.
    """
    if platform not in VENDORS:
        raise unknown_name("platform", platform, VENDORS)
    wanted = _canonical(name)
    sampled, notes = _sampled(version)
    names = _data()["versions"][sampled]["names"]
    found, ok, switch = _named(wanted, sampled, names, notes)
    if platform in ("cpu", "tpu"):
        found, ok, switch = _silent_platform(wanted, sampled, names, platform, notes)
    elif ok:
        ok = _runs_there(found or wanted, platform, notes)
    flag, env = _switch(found, sampled, notes) if ok and switch and found else (None, None)
    return Resolution(wanted, version, flag, env, found, "; ".join(dict.fromkeys(notes)), ok)


def names(version: str) -> tuple[str, ...]:
    """The backend names of a vLLM version's enum (of the nearest known version at or before it).

    Raises:
        UsageError: not a version, or older than all that are known.
    """
    return tuple(_data()["versions"][_sampled(version)[0]]["names"])


def attnkit_name(vllm_name: str) -> str | None:
    """attnkit's canonical name for a name in any vLLM version; None where attnkit has no such backend."""
    table = spellings()
    folded = vllm_name.strip().casefold()
    return table.get(folded) or table.get(folded.removesuffix(_SUFFIX.casefold()))


def refuse_untested(name: str) -> None:
    """Refuse a backend that some vLLM has and attnkit has not.

    Raises:
        InconclusiveError: with what to do.
    """
    upper = name.strip().upper()
    if attnkit_name(name) is not None or upper.removesuffix(_SUFFIX) in _CPU_MLA:
        return
    having = [version for version in versions() if upper in _data()["versions"][version]["names"]]
    if having:
        ours = ", ".join(sorted({our for their in names(versions()[-1]) if (our := attnkit_name(their))}))
        raise InconclusiveError(
            f"{upper} is vLLM's (in {having[0]} to {having[-1]}); attnkit has no test for it, so nothing says whether it "
            f"is right on this device. Give one that attnkit can test ({ours}), leave the choice to "
            "attnkit, or start vLLM without it"
        )


def versions() -> tuple[str, ...]:
    """The vLLM versions whose names are known, oldest first."""
    return tuple(_data()["versions"])


@cache
def _data() -> dict[str, Any]:
    text = resources.files("attnkit").joinpath("data/vllm-names.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(text, Loader=loader)  # type: ignore[no-any-return]  # a safe loader


def _canonical(name: str) -> str:
    """vLLM's own name where some version has it, else attnkit's."""
    upper = name.strip().upper()
    theirs = {n for record in _data()["versions"].values() for n in record["names"]}
    if upper in theirs:
        return upper
    ours = spellings().get(name.strip().casefold())
    if ours is None:
        raise unknown_name("backend", name, theirs | {b.name for b in all_backends()})
    return ours


def _sampled(version: str) -> tuple[str, list[str]]:
    """The nearest known version at or before `version`, and a note where it is not that very one."""
    try:
        asked = Version(version)
    except InvalidVersion:
        raise UsageError(f"{version!r} is not a version of vLLM; write it like 0.33.0") from None
    known = [(Version(text), text) for text in versions()]
    # A local build ("0.33.0+cpu") has its release's names.
    before = [text for parsed, text in known if parsed <= Version(asked.public)]
    if not before:
        raise UsageError(f"vLLM {version} is older than {known[0][1]}, the oldest version whose names are known")
    if Version(before[-1]) == Version(asked.public):
        return before[-1], []
    newer = " (newer than every known version)" if before[-1] == known[-1][1] else ""
    return before[-1], [f"vLLM {version}{newer} is judged by the names of {before[-1]}"]


def _named(wanted: str, sampled: str, names: list[str], notes: list[str]) -> tuple[str | None, bool, bool]:
    """(name in this version or what replaced it, usable, takes a switch), platforms aside."""
    base = wanted.removesuffix(_SUFFIX)
    rows = _data()["resolver_to_0_33"]
    row: dict[str, Any] = rows.get(wanted) or rows.get(base) or {}
    gone = _UNUSABLE_FROM.get(base)
    if gone is not None and Version(sampled) >= Version(gone):
        notes.append(row.get("note", f"{base} has no code behind it"))
        return None, False, False
    spelled = (_RENAMED.get(base), wanted, base, base + _SUFFIX)
    found = next((n for n in spelled if n in names), None)
    if found is not None:
        if found != wanted:
            notes.append(f"vLLM {sampled} calls it {found}")
        return found, True, True
    now = row.get("now")
    if not row and base in {b.name for b in all_backends()}:
        notes.append(f"{base} is attnkit's own; no vLLM version has it")
        return ("TRITON_ATTN" if base == "TURING_ATTN" and "TRITON_ATTN" in names else None), False, False
    notes.append(f"vLLM {sampled} has no {wanted}" + (f": {row['note']}" if row else ""))
    return (now if now in names else None), False, False


def _silent_platform(
    wanted: str, sampled: str, names: list[str], platform: str, notes: list[str]
) -> tuple[str | None, bool, bool]:
    """CPU and TPU: vLLM runs its own whatever it is told, so nothing is told."""
    base = wanted.removesuffix(_SUFFIX)
    if platform == "cpu":
        runs = "CPU_ATTN" if Version(sampled) >= _CPU_RENAME else "TORCH_SDPA"
        same = base in ("TORCH_SDPA", "CPU_ATTN")
        if "CPU_MLA" in names and (base in _CPU_MLA or _decodes_mla_only(base)):
            runs, same = (base, True) if base in _CPU_MLA else ("CPU_MLA", False)
    else:
        runs = "PALLAS" if "PALLAS" in names else "FLASH_ATTN"
        same = base in ("PALLAS", runs)
        if base == "FLASH_ATTN_MLA" and runs == "FLASH_ATTN":
            runs, same = base, True
    notes.clear()
    if same:
        renamed = f": {base} is called {runs} there" if base != runs else ""
        where = _CPU_MLA.get(runs, "")
        notes.append(f"no switch is needed on {platform}, where vLLM {sampled} always runs {runs}{where}{renamed}")
        return runs, True, False
    notes.append(f"on {platform} vLLM {sampled} replaces {base} by {runs} silently (one INFO line), whatever it is told")
    return runs, False, False


def _decodes_mla_only(name: str) -> bool:
    ours = attnkit_name(name)
    return ours is not None and all(p.capability.ops == {"mla_decode"} for p in get(ours).providers)


def _runs_there(found: str, platform: str, notes: list[str]) -> bool:
    """Whether vLLM on this platform takes the name at all."""
    base = found.removesuffix(_SUFFIX)
    if base in ("TORCH_SDPA", "CPU_ATTN", "CPU_MLA", "AMX_MLA"):
        elsewhere = "; elsewhere it survives only as --mm-encoder-attn-backend" if base == "TORCH_SDPA" else ""
        notes.append(f"{base} is for the CPU{elsewhere}")
        return False
    if platform == "xpu":
        allowed = (*_XPU_NAMES, "IPEX")
        if base not in allowed:
            notes.append(f"on xpu vLLM takes only {', '.join(_XPU_NAMES)}; any other name raises ValueError")
        return base in allowed
    ours = attnkit_name(found)
    if ours is not None:
        vendors = {v for p in get(ours).providers for v in p.capability.archs}
        # vLLM's FLASH_ATTN on ROCm is flash_attn's ROCm build, which attnkit calls ROCM_FLASH.
        if VENDORS[platform] not in vendors and not (platform == "rocm" and base == "FLASH_ATTN"):
            notes.append(f"{base} does not run on {platform}")
            return False
    elif platform == "cuda" and base.startswith(("ROCM_", "XPU_")):
        notes.append(f"{base} does not run on {platform}")
        return False
    if "AITER" in base:
        notes.append("needs VLLM_ROCM_USE_AITER=1")
    return True


def _switch(found: str, sampled: str, notes: list[str]) -> tuple[list[str] | None, dict[str, str] | None]:
    record = _data()["versions"][sampled]
    variable = record["env_VLLM_ATTENTION_BACKEND"]
    if record["cli_attention_backend"]:
        notes.append(f"{VARIABLE} is {variable} by vLLM {sampled}")
        return ["--attention-backend", found], None
    return None, {VARIABLE: found}
