"""Write attnkit/hardware/pci_ids.tsv from a file of the PCI ID database: every id of a die whose architecture ids.py knows.

    python -m tools.hardware.pci_ids /usr/share/misc/pci.ids     the Debian package pci.ids; hwdata and pciutils have it, too
    python -m tools.hardware.pci_ids --check                     exit 1 where the table is not in the form that this writes

The database changes every day, so --check compares nothing with the copy on this machine: it writes the committed table again
from its own rows, and asks whether every row is of a die that ids.py names.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from attnkit.hardware import ids

OUTPUT = Path(ids.__file__).with_name(ids.TABLE)
_HEAD = (
    "# version {version} of the PCI ID database (https://pci-ids.ucw.cz): vendor, die, device, product; "
    "written by tools.hardware.pci_ids"
)
# Other functions of a GPU's die, and ids that no product has.
_NO_GPU = re.compile(r"Audio|USB|UCSI|NVSwitch|Switch|Port\b|Reserved|Initial DevID")


def read(lines: Iterable[str]) -> tuple[str, list[ids.Row]]:
    """The database's version, and a row for each device of the dies in ids.py, sorted."""
    version, vendor = "unknown", ""
    rows = []
    for line in lines:
        if line.startswith("#"):
            version = line.split()[-1] if "Version:" in line else version
        elif re.match(r"[0-9a-f]{4}  ", line):
            vendor = line[:4]
        elif line.startswith("C "):
            break  # device classes: the end of the vendors
        elif vendor in ids.DIES and (found := re.match(r"\t([0-9a-f]{4})  (.+)", line)):
            device, text = found[1], found[2].strip()
            die = _die(vendor, text)
            if die is not None and not _NO_GPU.search(text):
                product = re.search(r"\[(.+)\]", text)
                rows.append(ids.Row(vendor, die, device, product[1] if product else ""))
    return version, sorted(rows)


def _die(vendor: str, text: str) -> str | None:
    """The longest die that `text` begins with: "TU117GLM [Quadro T1000 Mobile]" → TU117, "Krackan2" → Krackan2."""
    head = text.partition("[")[0]
    for die in sorted(ids.DIES[vendor], key=len, reverse=True):
        if head.startswith(die):
            rest = head[len(die) :]
            if vendor != ids.NVIDIA or not rest.strip() or re.match(r"(GLM|GL|BM|M|B)?(\s|/|$)", rest):
                return die if not rest[:1].isalnum() or vendor == ids.NVIDIA else None
    return None


def render(version: str, rows: Iterable[ids.Row]) -> str:
    """The file's text: a line a row, its fields with tabs between."""
    return "".join(f"{line}\n" for line in (_HEAD.format(version=version), *map("\t".join, sorted(rows))))


def problems(committed: Path = OUTPUT) -> list[str]:
    """What is wrong with the committed table; empty where nothing is."""
    head, *lines = committed.read_text(encoding="utf-8").splitlines()
    rows = [ids.Row(*line.split("\t")) for line in lines]
    found = [
        f"die {row.die} of vendor {row.vendor} is not in ids.DIES"
        for row in rows
        if row.die not in ids.DIES.get(row.vendor, {})
    ]
    if committed.read_text(encoding="utf-8") != render(head.split()[2], rows):
        found.append("the file is not what this program writes")
    return found


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", type=Path, nargs="?", help="a file pci.ids")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the committed table is wrong")
    options = parser.parse_args(argv)
    if options.check:
        found = problems()
        for problem in found:
            print(f"{OUTPUT}: {problem}; write it with python -m tools.hardware.pci_ids pci.ids", file=sys.stderr)
        return 1 if found else 0
    if options.database is None:
        parser.error("name a file pci.ids (Debian: apt-get install pci.ids, then /usr/share/misc/pci.ids), or --check")
    with options.database.open(encoding="utf-8", errors="replace") as lines:
        version, rows = read(lines)
    OUTPUT.write_text(render(version, rows), encoding="utf-8")
    print(f"{OUTPUT}: {len(rows)} ids, database of {version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
