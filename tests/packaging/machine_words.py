"""Names every tracked line that knows the machine it was written on: a home directory, or a host that pip or apt asks here.

    python tests/packaging/machine_words.py        exit 1 and name file and line where there are any

The hosts are read from this machine's own settings, so none is written down. Well-known public ones may be named anywhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = re.compile(r"(^|\.)(py[p]i\.org|[p]ythonhosted\.org|debia[n]\.org|ubunt[u]\.com|[d]ocker\.io|[p]ytorch\.org)$")
LOOPBACK = re.compile(r"^(localhost|127\.[0-9.]+)$")
URL_HOST = re.compile(r"https?://(?:[^/@\s]*@)?([A-Za-z0-9.-]+)")


def settings() -> str:
    """What pip and apt are told on this machine, as one text."""
    words = [value for name, value in os.environ.items() if name.upper().startswith("PIP_")]
    pip = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    words.append(pip.stdout)
    apt = Path("/etc/apt")
    for path in [*apt.glob("sources.list*"), *apt.glob("sources.list.d/*")]:
        if path.is_file():
            words.append(path.read_text(encoding="utf-8", errors="replace"))
    return "\n".join(words)


def private_hosts(text: str) -> set[str]:
    """The hosts in URLs of the text that are not well-known public ones."""
    return {host for host in URL_HOST.findall(text) if not PUBLIC.search(host) and not LOOPBACK.search(host)}


def paths() -> tuple[str, ...]:
    """Prefixes of files on this machine: the checkout and homes."""
    return tuple(dict.fromkeys((f"{ROOT}/", f"{Path.home()}/", "/" + "work/", "/" + "root/", "/" + "home/")))


def find(text: str, prefixes: tuple[str, ...], hosts: set[str]) -> list[tuple[int, str]]:
    """Line numbers and what was found on them."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        for prefix in prefixes:
            if re.search(rf"(?<![\w.}}-]){re.escape(prefix)}", line):
                found.append((number, prefix))
        found += [(number, host) for host in hosts if host in line]
    return found


def main() -> int:
    """Command line."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    prefixes, hosts = paths(), private_hosts(settings())
    bad = 0
    for name in filter(None, tracked.split("\0")):
        path = ROOT / name
        if not path.is_file() or path == Path(__file__).resolve():
            continue
        for number, word in find(path.read_text(encoding="utf-8", errors="replace"), prefixes, hosts):
            print(f"{name}:{number}: {word} is of the machine that this was written on")
            bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
