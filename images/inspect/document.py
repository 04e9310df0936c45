"""Writes docs/reference/images.md from docs/reports/images and platforms.yaml; with --check only says whether it is stale.

Nothing is measured here: a number that no report holds is not in the page.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from images import ROOT
from images.builder import platforms
from images.builder.platforms import Platform
from images.inspect import REPORTS

PAGE = ROOT / "docs" / "reference" / "images.md"
OFFICIAL = """\
vLLM's official image, for comparison: `vllm/vllm-openai:latest` was 28.6 GB on 2025-12-10, at vLLM 0.12.0, as a user of it
says in [vllm-project/vllm#22377](https://github.com/vllm-project/vllm/pull/22377) (read on 2026-11-26). It was not pulled
here, and the size of the one of vLLM 0.33 is not known here, so no ratio is given."""

SOURCE = "https://github.com/attnkit/attnkit"
HEAD = f"""\
# Images

What was built, and what was found in it. This page is generated from the [reports]({SOURCE}/tree/main/docs/reports/images)
and [images/platforms.yaml]({SOURCE}/blob/main/images/platforms.yaml); numbers are those of the examined image, of the
revision that is named with it. How to build images: [Build images](../guides/build-images.md). A report is made on a machine
without any accelerator; its checks run as an image's user does: not root, read-only root file system, no capabilities, no
network. What the present source precompiles may differ from the counts here: `attnkit kernels list --target sm_75` prints it.
"""
LAYERS = """
Where the index has no CPU build of torch (here there was none of 2.8.0, which ipex needs), its CUDA build is taken with the
libraries that it cannot load without, which are large. PyTorch's CPU index as `PIP_EXTRA_INDEX_URL` avoids it.

## Layers
"""
REBUILT = """
“Built again” is a build from the same inputs without any cache, on the same machine and day; “when attnkit changes” is a
build with one more line in one module. What a node fetches when attnkit changes:
"""
BY_LIBRARY = """
## What the libraries hold

The largest, and the GPU code in each: `sm_90a` is machine code for that architecture alone, `compute_80` is PTX, which the
driver compiles. What was removed from each is in the image's bill of materials.
"""
DESCRIBED = """
They go through the same Dockerfile, which is linted, with `FOUNDATION=system`: on top of a vendor's layers in place of
flattening them. That path is built on a stand-in base (Debian) by tests/images/test_foundations.py. The vendors' registries
and wheel indexes could not be reached. From PyPI alone (2026-11-26) vllm-xpu-kernels 0.1.16.2 and amd-aiter
0.1.7.post2.dev18 resolve, but neither vLLM nor torch is there for these devices, so nothing of ROCm or XPU was installed or
compiled in an image.
"""


def megabytes(count: int) -> str:
    """Bytes as MB, one digit where it is small."""
    return f"{count / 1e6:.0f}" if count >= 10e6 else f"{count / 1e6:.1f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def reports(folder: Path = REPORTS) -> dict[str, dict[str, Any]]:
    """Every image's report by platform."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return {name: report for name, report in found.items() if report["kind"] == "image"}


def sizes(known: dict[str, Platform], found: dict[str, dict[str, Any]]) -> list[str]:
    """The table of images."""
    rows = []
    for name, platform in known.items():
        report = found.get(name)
        engine = f"{platform.engine.package} {platform.engine.version}"
        if report is None:
            rows.append((name, platform.title, engine, "–", "–", platform.not_built or "described; no report yet"))
            continue
        kernels = (report["kernels"] or {}).get("kernels", {})
        counted = ", ".join(f"{target} {count}" for target, count in kernels.items()) or "–"
        rows.append((name, platform.title, engine, megabytes(report["image"]["bytes"]), counted, report["date"]))
    return table(("platform", "for", "engine or library", "MB", "precompiled kernels", "examined"), rows)


def for_architectures(known: dict[str, Platform], found: dict[str, dict[str, Any]]) -> list[str]:
    """The table of the images for some architectures, beside the whole platforms they are of; empty where none was examined."""
    some = [name for name in found if name not in known]
    if not some:
        return []
    rows = []
    for name in [*sorted({found[name]["platform"] for name in some} & set(found)), *some]:
        report = found[name]
        pull = report["image"].get("pull_bytes")
        code = report["checks"].get("GPU code in the libraries", "not measured")
        rows.append(
            (name, megabytes(report["image"]["bytes"]), megabytes(pull) if pull else "not measured", code, report["date"])
        )
    head = ("image", "MB on disk", "MB to pull (gzip)", "GPU code in the libraries", "examined")
    return ["", "## For some architectures", "", *table(head, rows)]


def by_library(found: dict[str, dict[str, Any]]) -> list[str]:
    """The tables of libraries, where a report has them."""
    lines = [BY_LIBRARY] if any("libraries" in report for report in found.values()) else []
    for name, report in found.items():
        if libraries := report.get("libraries"):
            rows = [
                (library["name"].rsplit("/", 1)[-1], megabytes(library["bytes"]), code_of(library["code"]))
                for library in libraries
            ]
            lines += [f"### {name}: libraries", "", *table(("library", "MB", "of it GPU code"), rows), ""]
    return lines


def code_of(code: dict[str, int]) -> str:
    """Megabytes by architecture, in words."""
    return ", ".join(f"{name} {megabytes(count)}" for name, count in code.items()) or "–"


def of_layers(found: dict[str, dict[str, Any]]) -> list[str]:
    """The table of layers."""
    rows = []
    for name, report in found.items():
        again = report.get("rebuilt")
        for layer in report["layers"]:
            same, kept = "not measured", "not measured"
            if again:
                same = "yes" if layer["digest"] in again["same_inputs_no_cache"] else "no"
                kept = "kept" if layer["digest"] in again["one_line_more_in_attnkit"] else "fetched again"
            rows.append((name, layer["what"], megabytes(layer["bytes"]), same, kept))
    return table(("platform", "layer", "MB", "same digest when built again", "when attnkit changes"), rows)


def fetched(found: dict[str, dict[str, Any]]) -> list[str]:
    """What a node fetches when attnkit changes, where that was measured."""
    return [
        f"- {name}: {again['fetched_bytes_compressed'] / 1e6:.2f} MB, compressed as a registry sends it."
        for name, report in found.items()
        if (again := report.get("rebuilt"))
    ]


def details(name: str, report: dict[str, Any]) -> list[str]:
    """What was found in one image."""
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    lines = ["", f"### {name}", "", f"Built from `{report['revision']}`; {versions}.", ""]
    targets = set(report["targets"])
    known = platforms.load()
    missing = [t for t in known[name].targets if t not in targets] if name in known else []
    counts = (report["kernels"] or {}).get("kernels", {})
    by_target = (
        f" (by kind of code: {', '.join(f'{count} {kind}' for kind, count in counts.items())})" if len(counts) > 1 else ""
    )
    for what, seen in report["checks"].items():
        lines.append(f"- {what}: {seen}{by_target if what.startswith('kernels verified') else ''}")
    if missing:
        lines.append(f"- **kernels of {', '.join(missing)} are described and were not compiled for this report**")
    return [*lines, f"- **not run**: {report['not_run']}"]


def page(known: dict[str, Platform], found: dict[str, dict[str, Any]]) -> str:
    """The whole page."""
    not_built = [f"- {name}: {platform.not_built}." for name, platform in known.items() if platform.not_built]
    lines = [
        HEAD,
        *sizes(known, found),
        "",
        OFFICIAL,
        *for_architectures(known, found),
        LAYERS,
        *of_layers(found),
        REBUILT,
        *fetched(found),
        *by_library(found),
        "",
        "## What was checked",
        *(line for name, report in found.items() for line in details(name, report)),
        "",
        "## Described, not built",
        "",
        *not_built,
        DESCRIBED,
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is stale")
    args = parser.parse_args(argv)
    text = page(platforms.load(), reports())
    fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
    if not fresh and not args.check:
        PAGE.write_text(text, encoding="utf-8")
    if not fresh:
        print(f"{'stale' if args.check else 'wrote'}: {PAGE.relative_to(ROOT)}")
    return 1 if args.check and not fresh else 0


if __name__ == "__main__":
    sys.exit(main())
