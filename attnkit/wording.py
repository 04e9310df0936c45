"""Numbers, specs and reasons as text, for the terminal, the events and the HTML page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "skipped": "·", "planted": "◌"}
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "skipped": "dim", "planted": "magenta"}


_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Text from outside as a terminal may have it: control characters are shown (\x1b), not sent. Newline and tab stay."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def memory_text(size: int | None) -> str:
    """GiB with one digit; '' where unknown."""
    return "" if size is None else f"{size / 2**30:.1f} GiB"


def number(value: float | None) -> str:
    """Two significant digits; '' where nothing was compared."""
    return "" if value is None else f"{value:.1e}"


def bar(share: float, width: int = 10) -> str:
    """An error as a share of its bound, drawn and in figures: ▰▰▰▱▱▱▱▱▱▱ 0.31; full where it is over."""
    filled = min(width, max(0, round(share * width)))
    return f"{'▰' * filled}{'▱' * (width - filled)} {share:.2f}"


def spec_text(spec: Any) -> str:
    """A spec in one line: paged bfloat16 32/8 heads of 128, blocks of 16."""
    value_dim = f"/{spec.head_dim_v}" if spec.head_dim_v not in (None, spec.head_dim) else ""
    parts = [f"{spec.op} {spec.dtype}, {spec.num_heads}/{spec.num_kv_heads} heads of {spec.head_dim}{value_dim}"]
    if spec.block_size is not None:
        parts.append(f"blocks of {spec.block_size}")
    if spec.kv_cache_dtype != "auto":
        parts.append(f"cache {spec.kv_cache_dtype}")
    if spec.features:
        parts.append(" ".join(sorted(spec.features)))
    return ", ".join(parts)


def layer_text(kind: Any) -> str:
    """What is special about a kind of layer, beside heads and sizes: 'window 4096, softcap 50'."""
    operation = {
        "mla_decode": "MLA",
        "sparse_mla": "sparse MLA",
        "dual_chunk": "dual chunk",
        "differential": "differential",
        "tree": "tree",
    }.get(kind.spec.op)
    features = kind.spec.features
    parts = [
        operation or "",
        "non-causal" if "non_causal" in features else "",
        f"window {kind.window}{' on both sides' if kind.two_sided else ''}" if kind.window else "",
        f"chunks of {kind.chunk}" if kind.chunk else "",
        f"softcap {kind.softcap:g}" if kind.softcap else "",
        *(text for name, text in _FEATURE_TEXTS.items() if name in features),
        f"scale {kind.softmax_scale:.4g}" if kind.softmax_scale else "",
    ]
    return ", ".join(part for part in parts if part)


_FEATURE_TEXTS = {
    "sinks": "sinks",
    "alibi": "ALiBi",
    "relative_bias": "relative bias",
    "prefix_lm": "prefix without mask",
}


def heads_text(spec: Any) -> str:
    """'32/8 × 128' or '64/4 × 192/128': query and key heads, width of keys and of values."""
    value_dim = f"/{spec.head_dim_v}" if spec.head_dim_v not in (None, spec.head_dim) else ""
    return f"{spec.num_heads}/{spec.num_kv_heads} × {spec.head_dim}{value_dim}"


def short_reasons(reasons: Iterable[Any]) -> list[str]:
    """Reasons as people want them: of a provider that the device already rules out, that alone; every other one's in full.

    Args:
        reasons: `Reason`s, or their plain form; of several providers, each message begins with the provider's name.
    """
    pairs = [(r["code"], r["message"]) if isinstance(r, Mapping) else (r.code, r.message) for r in reasons]
    by_provider: dict[str, list[tuple[str, str]]] = {}
    for code, message in pairs:
        by_provider.setdefault(message.partition(": ")[0] if ": " in message else "", []).append((code, message))
    about_device = {
        name: [message for code, message in said if code in ("device", "arch")] for name, said in by_provider.items()
    }
    if all(about_device.values()):  # no provider is left, and for one cause: without their names
        return list(dict.fromkeys(m.partition(": ")[2] or m for said in about_device.values() for m in said))
    return list(dict.fromkeys(m for name, said in by_provider.items() for m in about_device[name] or [m for _, m in said]))


def health_text(health: Any) -> str:
    """The few numbers of a device's state (`attnkit.hardware.health.Health`) that a person looks at first; what is not known
    is not there."""
    if health is None:
        return ""
    used, total = health.memory_used_bytes, health.memory_total_bytes
    parts = {
        f"{(used or 0) / 2**30:.1f} of {memory_text(total)} in use": used is not None and total is not None,
        f"{health.temperature_c} °C": health.temperature_c is not None,
        f"{health.power_w} W": health.power_w is not None,
        f"{health.clock_mhz} MHz": health.clock_mhz is not None,
        f"PCIe {health.pcie_generation} × {health.pcie_width}": health.pcie_width is not None,
        f"{health.links} links": bool(health.links),
        f"{health.ecc_uncorrected_volatile} uncorrected errors": health.ecc_uncorrected_volatile is not None,
    }
    return ", ".join(text for text, known in parts.items() if known) or "its state could not be read"
