"""docs/reference/vllm-names.md: what every backend is called and how it is asked for, by version and platform of vLLM.

Made from the resolver (`vllm_names.resolve`) by tools/docs/generate.py. Columns are the versions in
which a column would differ from the one before it.
"""

from __future__ import annotations

from attnkit.backends.registry import all_backends
from attnkit.engines.vllm.names import VENDORS, Resolution, attnkit_name, names, resolve, versions

_HEAD = """# vLLM's backend names

What `attnkit resolve NAME --vllm VERSION --platform PLATFORM` answers, as a table. The data is in
[vllm-names.yaml](https://github.com/attnkit/attnkit/blob/main/attnkit/data/vllm-names.yaml); to add a version, see
[Add a vLLM version](../how-to/add-a-vllm-version.md).

| cell | meaning |
|---|---|
| `flag NAME` | `--attention-backend NAME` |
| `env NAME` | `VLLM_ATTENTION_BACKEND=NAME` |
| own | vLLM uses it on that platform without a switch |
| NAME alone | what this version has or runs instead; no switch is given |
| – | nothing |

CPU_MLA is for CPUs without AMX; with AMX vLLM takes AMX_MLA.
"""


def markdown() -> str:
    """The whole page."""
    known, newest = columns("cuda"), versions()[-1]
    lines = [_HEAD, "## On CUDA, by version", "", "A column applies up to the version before the next column.", ""]
    lines += _table(known, {version: (version, "cuda") for version in known})
    lines += ["", f"## In vLLM {newest}, by platform", ""]
    lines += _table(tuple(VENDORS), {platform: (newest, platform) for platform in VENDORS})
    return "\n".join(lines) + "\n"


def columns(platform: str) -> tuple[str, ...]:
    """The known versions in which some backend's cell differs from that of the version before."""
    found: list[str] = []
    before: list[str] = []
    for version in versions():
        now = [cell(resolve(backend.name, version, platform)) for backend in all_backends()]
        if now != before:
            found.append(version)
        before = now
    return tuple(found)


def cell(found: Resolution) -> str:
    """One answer, short."""
    if not found.ok:
        return "–" if found.now is None or found.now in called(found.name) else found.now
    if found.flag:
        return f"flag {found.flag[-1]}"
    if found.env:
        return f"env {next(iter(found.env.values()))}"
    return f"own {found.now}"


def called(name: str) -> frozenset[str]:
    """What vLLM's versions call backend `name`: where it does not run on a platform, no name of its own replaces it."""
    return frozenset(known for version in versions() for known in names(version) if attnkit_name(known) == name)


def _table(heads: tuple[str, ...], places: dict[str, tuple[str, str]]) -> list[str]:
    lines = ["| backend | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for backend in all_backends():
        cells = [cell(resolve(backend.name, *places[head])) for head in heads]
        lines.append(f"| {backend.name} | " + " | ".join(cells) + " |")
    return lines
