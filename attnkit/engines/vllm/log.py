"""Which attention backend a vLLM really runs, read from its own log.

vLLM on CPU (and TPU) takes its one backend whatever was asked for and says so in one INFO line; elsewhere an automatic choice
names itself in passing. `assert_chosen` makes an error of a silent replacement. The lines are those of vLLM 0.25 to 0.33
(platforms/{cpu,cuda,rocm,xpu}.py); no other version's words are guessed at.

Imports nothing of vLLM.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

LOG_LINE = "attention is computed by attnkit's {backend}, in the place of vLLM's {slot}"
"""What our own plugin says, once a process, when vLLM really builds a layer on it. See `vllm_backend`."""

LOADED = re.compile(r"\binit engine \(profile, create kv cache, warmup model\) took ")
"""The engine process holds its model and its cache (vllm/v1/engine/core.py); all that a node without an API server says."""

READ = (">=0.25,<0.34",)
"""vLLM versions whose lines are known."""

_OURS = re.compile(r"attention is computed by attnkit's (?P<name>\w+), in the place of vLLM's (?P<place>\w+)")
_CANNOT = re.compile(r"Cannot use (?:AttentionBackendEnum\.)?(?P<name>\w+) backend on CPU\.")
_USING = (
    re.compile(
        r"Using (?:AttentionBackendEnum\.)?(?P<name>[A-Z][A-Z0-9_]+) backend(?: \(selected via --attention-backend\))?\."
    ),
    re.compile(r"Using (?P<name>[A-Z][A-Z0-9_]+) (?:attention )?backend out of potential backends: "),
    re.compile(r"Overriding with (?P<name>[A-Z][A-Z0-9_]+) out of potential backends: "),
)
_IN_WORDS = {
    "Using Flash Attention MLA backend on XPU.": "FLASH_ATTN_MLA",
    "Using Flash Attention backend.": "FLASH_ATTN",
    "Using Triton MLA backend on V1 engine.": "TRITON_MLA",
    "Using Triton backend.": "TRITON_ATTN",
    "Using TurboQuant attention backend.": "TURBOQUANT",
    "Using XPU MLA Sparse backend.": "XPU_MLA_SPARSE",
}
"""XPU says it in words."""
_ON_CPU = re.compile(r"\bdevice_config=cpu\b")


@dataclass(frozen=True)
class Running:
    """What the log says.

    Args:
        backend: vLLM's name of the backend, or attnkit's where our plugin computes in its place; None where nothing is said.
        others: further backends that the log names: a model's kinds of layer may run on several.
        place: the vLLM backend whose place our plugin took, else None.
        refused: what vLLM was asked for and did not take (CPU), else None.
        line: the line that says so, "" where it follows from the platform alone.
    """

    backend: str | None
    place: str | None = None
    refused: str | None = None
    line: str = ""
    others: tuple[str, ...] = ()


def is_known(version: str) -> bool:
    """True where the log lines of this vLLM version are known."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return any(SpecifierSet(spec).contains(version, prereleases=True) for spec in READ)
    except InvalidVersion:
        return False


def matters(line: str) -> bool:
    """True for a line that `read_log` reads: what a supervisor that cannot keep the whole output has to keep."""
    return bool(_OURS.search(line) or _CANNOT.search(line) or _ON_CPU.search(line) or _said(line))


def read_log(lines: Iterable[str], version: str) -> Running:
    """What the log of a vLLM of this version says about its attention backend. Later lines win; ours win over vLLM's."""
    if not is_known(version):
        return Running(None)
    all_said: dict[str, str] = {}
    ours: tuple[str, str, str] | None = None
    refused: tuple[str, str] | None = None
    on_cpu = False
    for line in lines:
        text = line.rstrip()
        on_cpu = on_cpu or bool(_ON_CPU.search(text))
        if found := _OURS.search(text):
            ours = found["name"], found["place"], text
        elif found := _CANNOT.search(text):
            refused = found["name"], text
        elif name := _said(text):
            all_said.pop(name, None)
            all_said[name] = text
    said = next(reversed(all_said.items()), None)
    cannot = refused[0] if refused else None
    if ours:
        return Running(ours[0], ours[1], cannot, ours[2], tuple(name for name in all_said if name != ours[1]))
    if said:
        return Running(said[0], None, cannot, said[1], tuple(name for name in all_said if name != said[0]))
    if refused:
        return Running("CPU_ATTN", None, cannot, refused[1])
    # CPU_ATTN is the one that does not announce itself: the platform has no other for anything but MLA, which does.
    return Running("CPU_ATTN" if on_cpu else None)


def _said(text: str) -> str | None:
    for pattern in _USING:
        if found := pattern.search(text):
            return found["name"]
    return next((name for words, name in _IN_WORDS.items() if words in text), None)


def backend_from_log(lines: Iterable[str], version: str) -> str | None:
    """The name of the backend that computes: vLLM's, or attnkit's where our plugin took its place; None where unknown.

    Args:
        lines: the engine's output. On CPU it must reach back to the line that prints the engine's configuration.
        version: `vllm.__version__`.
    """
    return read_log(lines, version).backend


def assert_chosen(chosen: str, lines: Iterable[str], version: str, also: Collection[str] = ()) -> str | None:
    """What is wrong where the engine does not run `chosen`; None where it does.

    Args:
        chosen: the backend that was validated and handed over, in either spelling ("CPU_ATTN", "vllm:CPU_ATTN").
        lines, version: as for `backend_from_log`.
        also: further backends that some layers are known to run on, for models that take several.
    """
    name = chosen.removeprefix("vllm:").upper()
    running = read_log(lines, version)
    if running.backend is not None and {running.backend, *running.others} <= {name, *also}:
        return None
    if running.others:
        every = ", ".join((*running.others, str(running.backend)))
        return f"vLLM {version} runs several attention backends, {every} (by its log), and only {name} was validated"
    if running.backend is None:
        what = "its log does not name one" if is_known(version) else "the log lines of this version are not known"
        return f"cannot tell which attention backend vLLM {version} runs: {what}; {name} was chosen"
    replaced = f", having silently replaced {running.refused}" if running.refused else ""
    line = f" (its log: {running.line})" if running.line else ""
    return f"vLLM {version} runs {running.backend}, not {name}{replaced}{line}"
