"""docs/reference/backends.md: every backend, its providers and what they claim, its evidence; and the cross-compile table."""

from __future__ import annotations

from attnkit.backends.base import Backend, Capability, Provider
from attnkit.backends.registry import all_backends
from attnkit.select import evidence
from tools.docs import compiled
from tools.docs.markdown import page, table

WORDS = {
    "measured": "the standard self-test passed on that hardware",
    "emulated": "it passed in an interpreter, or that architecture's code passed on another GPU",
    "compiled": "machine code was produced for that target and its matrix instructions were counted",
    "contract": "our call was checked against the provider's real package",
    "none": "nothing of the kind",
}


def markdown() -> str:
    """The whole page."""
    lines = [
        "Names are accepted in any letter case. A provider is the library behind a backend; “attnkit” means a kernel of this",
        "project. A call that a provider does not claim to support is refused with the reason. The level of evidence is read",
        "from the [reports](../reports/index.md):",
        "",
        *table(("level", "meaning"), WORDS.items()),
        "",
    ]
    rows = []
    for backend in all_backends():
        providers = ", ".join(provider.name for provider in backend.providers)
        link = f"[{backend.name}](#{backend.name.lower()})"
        rows.append((link, backend.summary, _evidence(backend), providers, ", ".join(backend.aliases)))
    lines += table(("backend", "computes", "evidence", "providers, in order", "other names"), rows)
    for backend in all_backends():
        lines += ["", f"## {backend.name}", ""]
        head = ("provider", "needs", "runs on", "operations", "dtypes", "cache", "head sizes", "blocks", "features")
        lines += table(head, (_provider_row(provider) for provider in backend.providers))
    return page("Backends", *lines, "", *compiled.markdown())


def _evidence(backend: Backend) -> str:
    by_word: dict[str, list[str]] = {}
    for item in evidence.evidence_for(backend.name):
        by_word.setdefault(item.word, []).append(item.target)
    return "; ".join(f"{word}: {', '.join(targets)}" for word, targets in by_word.items()) or "none"


def _provider_row(provider: Provider) -> tuple[str, ...]:
    c = provider.capability
    archs = "; ".join(f"{vendor} {', '.join(patterns)}" for vendor, patterns in c.archs.items())
    return (
        provider.name,
        ", ".join(f"`{r}`" for r in provider.requires),
        archs.replace("*", "\\*"),
        ", ".join(sorted(c.ops)),
        ", ".join(sorted(c.dtypes)),
        ", ".join(sorted(c.kv_cache_dtypes)),
        str(c.head_dims),
        _blocks(c),
        ", ".join(sorted(c.features)),
    )


def _blocks(c: Capability) -> str:
    if c.block_sizes is not None:
        return ", ".join(map(str, sorted(c.block_sizes)))
    return "any" if c.block_multiple == 1 else f"multiples of {c.block_multiple} from {c.min_block_size}"
