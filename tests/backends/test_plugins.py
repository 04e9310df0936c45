"""Backends from somebody else's wheel: used where they are sound, a finding with its reason where they are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MODULE = '''
"""Attention by the matrix products of torch, as a plugin might do it."""

from attnkit.backends.base import Backend, Capability, Provider
from attnkit.spec import AttentionOutput

CAPABILITY = Capability(ops=frozenset({"varlen"}), archs={"cpu": ("*",)}, dtypes=frozenset({"float32"}))


def _run(call):
    import torch

    out = call.query.new_zeros(call.out_shape)
    for (q0, q1), (k0, k1) in zip(_spans(call.query_start_loc), _spans(call.key_start_loc), strict=True):
        scores = torch.einsum("qhd,khd->hqk", call.query[q0:q1], call.key[k0:k1]) * call.softmax.softmax_scale
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + k1 - k0 - (q1 - q0))
        out[q0:q1] = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), call.value[k0:k1])
    return AttentionOutput(out, None, "plain_products")


def _spans(starts):
    return zip(starts.tolist(), starts.tolist()[1:])


def _backend(name, *aliases):
    provider = Provider("products", CAPABILITY, _run, ("torch>=2.8",), "plain products of torch")
    return Backend(name, (provider,), aliases, "a plugin's backend")


SOUND = _backend("PLAIN_PRODUCTS", "plain")
CLASHING = (_backend("MY_OWN", "sdpa"),)
'''

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "plain-products"
version = "1.2"

[project.entry-points."attnkit.backends"]
a_sound_one = "plain_products:SOUND"
clashes = "plain_products:CLASHING"
absent = "plain_products_that_nobody_wrote:BACKENDS"
broken = "plain_products:MISSPELT"
exits = "plain_products_exits:BACKENDS"
no_backend = "plain_products:CAPABILITY"

[tool.setuptools]
py-modules = ["plain_products", "plain_products_exits"]
"""

WHY = {
    "clashes": "its backend MY_OWN takes the name 'sdpa', which TORCH_SDPA has already",
    "absent": "ModuleNotFoundError: No module named 'plain_products_that_nobody_wrote'",
    "broken": "AttributeError: module 'plain_products' has no attribute 'MISSPELT'",
    "exits": "SystemExit: 3",
    "no_backend": "it names a Capability; it must name an attnkit.backends.base.Backend or a tuple of them",
}

CALL = """
import torch
from attnkit import api
torch.manual_seed(0)
query, key, value = (torch.randn(12, 2, 16) for _ in range(3))
starts = torch.tensor([0, 5, 12], dtype=torch.int32)
ours, theirs = (api.attention(query, key, value, starts, softmax_scale=0.25, backend=b) for b in ("torch", "Plain"))
torch.testing.assert_close(theirs.out, ours.out)
print(theirs.kernel)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with six entry points, built and installed into a folder of its own."""
    pytest.importorskip("setuptools", reason="builds the plugin's wheel")
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "target"))
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "plain_products.py").write_text(MODULE)
    (source / "plain_products_exits.py").write_text("raise SystemExit(3)\n")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)], check=True)
    (wheel,) = wheels.glob("plain_products-1.2-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    return target


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(installed), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


def attnkit(installed: Path, *arguments: str) -> Any:
    done = run(installed, "-m", "attnkit.cli", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def test_a_plugins_backend_runs_by_any_of_its_names(installed: Path) -> None:
    done = run(installed, "-c", CALL)
    assert (done.stdout.strip(), done.returncode) == ("plain_products", 0), done.stderr


def test_backends_lists_the_sound_one_and_says_why_the_others_are_not_used(installed: Path) -> None:
    rows = {row["name"]: row for row in attnkit(installed, "backends", "--json")}
    assert rows["PLAIN_PRODUCTS"]["usable"] and rows["PLAIN_PRODUCTS"]["evidence"] == "none"
    for name, reason in WHY.items():
        assert not rows[name]["usable"]
        assert rows[name]["why_not"] == f"backend plugin {name} of plain-products 1.2 is not used: {reason}"
    assert "MY_OWN" not in rows
    shown = " ".join(attnkit(installed, "backends").split())
    assert "clashes" in shown and "MY_OWN" in shown


def test_detect_and_select_say_it_too(installed: Path) -> None:
    found = attnkit(installed, "detect", "--json")
    errors = [probe["error"] for probe in found["probes"] if probe["probe"] == "backend-plugins"]
    assert len(errors) == len(WHY) and all(any(why in error for error in errors) for why in WHY.values())
    decision = attnkit(installed, "select", "--device", "x86_64", "--json")["decision"]
    assert decision["warnings"] == errors
    (refused,) = (r for r in decision["rejected"] if r["backend"] == "PLAIN_PRODUCTS")
    assert refused["reasons"]


def test_an_unknown_name_is_refused_with_what_was_not_loaded(installed: Path) -> None:
    done = run(installed, "-m", "attnkit.cli", "select", "--device", "x86_64", "--backend", "MY_OWN")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "unknown backend 'MY_OWN'" in done.stderr and "takes the name 'sdpa'" in " ".join(done.stderr.split())


def test_without_plugins_nothing_is_said() -> None:
    from attnkit.backends import registry

    assert registry.plugin_findings() == ()
