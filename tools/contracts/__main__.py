"""Check every contract and write the report: python -m tools.contracts --out docs/reports/contracts.json."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from attnkit.errors import EXIT_CHECK_FAILED
from attnkit.jsonio import now, to_json
from tools.contracts.check import check
from tools.contracts.table import CONTRACTS


def main(
    out: Annotated[Path | None, typer.Option(help="Where to write the report; standard output where left out.")] = None,
    cache: Annotated[Path, typer.Option(help="Where downloaded packages are kept.")] = Path(".cache/contracts"),
    small: Annotated[bool, typer.Option(help="Only packages that are quick to download.")] = False,
) -> None:
    """Check our calls into every provider against the package that PyPI serves; gigabytes of downloads without --small."""
    checks = []
    for contract in CONTRACTS:
        if small and not contract.small:
            continue
        done = check(contract, cache)
        typer.echo(f"{'ok  ' if done.ok else 'FAIL'} {contract.id}: {done.detail}", err=True)
        checks.append(done)
    document = {
        "kind": "contract",
        "created": now(),
        "command": "python -m tools.contracts" + (" --small" if small else ""),
        "checks": [asdict(done) for done in checks],
    }
    text = to_json(document) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    if not all(done.ok for done in checks):
        raise typer.Exit(EXIT_CHECK_FAILED)


if __name__ == "__main__":
    typer.run(main)
