"""One word, one idea: words that were given up do not come back in help texts, docs, docstrings and messages."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SAY = {
    r"planted (?!and )|plants? (a |the )?faults?": "inject a fault, simulate a device",
    r"un?proven|prov(en|es|ing)|to prove|proofs?": "validate, validated, test",
    r"(this|the|a|that) box('s)?|boxes": "machine",
    r"a (pre)?bake|the bake|bakes|baked|baking": "precompiled kernels, kernel directory",
    r"(very|unlike) (card|cards|device|devices)|cards": "GPU, device",
    r"fleet of unlike|unlike (accelerators|gpus|devices|lengths?)": "heterogeneous, different",
    r"beside (vllm|stock|eager|their peers|its peers|torch's)": "compared with",
    r"on the spot": "just in time, generated",
    r"of no use|no multiple of": "not used, not a multiple of",
    r"fit together": "consistent",
    r"are whole|is whole": "verified OK",
    r"what befell|befell|mended|started anew|gives? signs of life|hears nothing|in mid-change": "the field's word",
    r"secrets belong into|belongs? into": "belong in",
    r"look(ed|s)? into": "inspect",
    r"worth sending back": "submission report",
    r"with commas between": "comma-separated",
    r"for somebody else": "background load",
}
"""Words given up, as regular expressions, and what is said instead."""

KEPT = re.compile(
    r"'planted'|`planted`|\"planted\"|planted_(fault|answer)|--planted-answer|PLANTED_ANSWER|planted-device-answer|--prove\b"
    r"|\bkernels\.baked\b|KernelCounts\.baked|`baked`|\"baked\"|BakedCacheManager|bake-(cpu|triton|pallas)"
    r"|-prove(\.json|\b)|\.proven\b|`proven`",
    re.IGNORECASE,
)
"""Public names that scripts may use: report values, events, options and a class; they keep their old form."""

BANNED = {re.compile(rf"\b(?:{word})(?!\w)", re.IGNORECASE): say for word, say in SAY.items()}
TEXTS = ("*.md", "*.yml", "*.yaml", "*.j2", "*.jinja", "Makefile", "*Dockerfile", "*.sh", "*.toml", "*.in")
NOT_READ = (
    "docs/reports/*/*.md",
    "docs/reports/fleet.md",  # its tables quote reports as they were written
    "docs/reference/images.md",  # what finished images said of themselves
    "CHANGELOG.md",
    "changelog.d/*",
    "attnkit/data/report.html.jinja",  # CSS
    "*.html.j2",
)


def tracked(*patterns: str) -> Iterator[Path]:
    done = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and not any(path.relative_to(ROOT).match(pattern) for pattern in NOT_READ):
            yield path


def spoken(path: Path) -> Iterator[tuple[int, str]]:
    """What a person may read: every line of a text, every string of a module that is no key: docstrings, messages."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), start=1)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not node.value.isidentifier():
            yield from enumerate(node.value.splitlines(), start=node.lineno)


def complaints(text: str) -> list[str]:
    """Words of the list that stand in `text` and are no public name."""
    text = KEPT.sub("", text)
    return [f"{found[0]!r}: say {say}" for word, say in BANNED.items() if (found := word.search(text))]


@pytest.mark.parametrize("folder", ["attnkit", "tools", "images", "deploy", "docs", "profiles", "examples", "."])
def test_words_given_up_do_not_come_back(folder: str) -> None:
    patterns = (
        [f"{folder}/{pattern}" for pattern in (*TEXTS, "*.py")] if folder != "." else [":(glob)*.md", "Makefile", "mkdocs.yml"]
    )
    paths = list(tracked(*patterns))
    assert paths
    found = [
        f"{path.relative_to(ROOT)}:{line}: {complaint}"
        for path in paths
        for line, text in spoken(path)
        for complaint in complaints(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Proven right on the very card it runs on", "very card"),
        ("Devices in this box, and the node type they make it.", "this box"),
        ("why the bake was of no use", "the bake"),
        ("plants faults and must catch every one", "plants faults"),
        ("our kernels beside their peers", "beside their peers"),
    ],
)
def test_a_sentence_of_before_is_found(text: str, word: str) -> None:
    assert any(word in complaint for complaint in complaints(text))


def test_a_public_name_is_left_alone() -> None:
    for text in (
        "the verdict is `planted`",
        "`--prove` is now `--inject-faults`",
        "FROM compilers AS bake-cpu",
        '{"baked": 0}',
    ):
        assert complaints(text) == []
