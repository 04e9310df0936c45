"""Names that users rely on stay: imports, commands, options, variables, events, exit codes, report fields, metrics."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
from pathlib import Path

import pytest

from tools.public_names import collect

COMMITTED: dict[str, list[str]] = json.loads(
    (Path(__file__).resolve().parents[1] / "data" / "public-names.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def present() -> dict[str, list[str]]:
    return collect()


@pytest.mark.parametrize("kind", [kind for kind in COMMITTED if kind not in ("imports", "runnable modules")])
def test_no_name_is_gone(kind: str, present: dict[str, list[str]]) -> None:
    assert COMMITTED[kind], "an empty list holds nothing"
    gone = sorted(set(COMMITTED[kind]) - set(present[kind]))
    assert not gone, f"{kind} that scripts may use: keep them, or let them work under their old names too"


@pytest.mark.parametrize("path", COMMITTED["imports"])
def test_what_users_import_is_there(path: str) -> None:
    assert pkgutil.resolve_name(path) is not None


@pytest.mark.parametrize("module", COMMITTED["runnable modules"])
def test_what_is_run_as_a_module_can_be(module: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    assert not spec.submodule_search_locations or importlib.util.find_spec(f"{module}.__main__")
