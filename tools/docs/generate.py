"""Write every generated file of the documentation, or with --check say which of them is stale.

    python -m tools.docs.generate            write
    python -m tools.docs.generate --check    exit 1 and name each file that differs from what the code says

The table below is the only list. Kubernetes manifests, the page about images and the tables about the fleet are written by
their owners in deploy/ and images/; `make generate` runs all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from attnkit.boot import report
from attnkit.select import evidence
from tools.docs import (
    architectures,
    backends,
    cli,
    environment,
    metrics,
    node_types,
    performance,
    rooms,
    schemas,
    self_test,
    vllm_table,
)
from tools.docs.evidence import collect, dump

ROOT = Path(__file__).resolve().parents[2]


def evidence_json() -> str:
    """The levels of evidence that docs/reports shows, as the package ships them."""
    return dump(collect(ROOT / "docs" / "reports", ROOT))


GENERATED: dict[str, Callable[[], str]] = {
    "attnkit/data/evidence.json": evidence_json,
    "docs/development/packages.svg": rooms.svg,
    "docs/reference/backends.md": backends.markdown,
    "docs/reference/cli.md": cli.markdown,
    "docs/reference/environment.md": environment.markdown,
    "docs/reference/metrics.md": metrics.markdown,
    "docs/reference/node-types.md": node_types.markdown,
    "docs/reference/profiles.md": schemas.profiles_markdown,
    "docs/reference/report.md": schemas.report_markdown,
    "docs/reference/self-test.md": self_test.markdown,
    "docs/reference/vllm-names.md": vllm_table.markdown,
    "docs/report.schema.json": report.schema_text,
    "docs/reports/architectures.md": architectures.markdown,
    "docs/reports/performance.md": performance.markdown,
    "profiles/schema.json": schemas.profile_schema_text,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is stale")
    check = parser.parse_args(argv).check
    stale = []
    for name, make in GENERATED.items():
        path = ROOT / name
        text = make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                evidence.load.cache_clear()
    for name in stale:
        print(f"{'stale' if check else 'wrote'}: {name}")
    if check and stale:
        print("run: make generate", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
