"""What examine.py makes of what an image printed; the images themselves are inspected by `make images-test`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from images.builder import platforms
from images.inspect import examine

BOOT = {
    "verdict": "pass",
    "backend": "IPEX",
    "provider": "ipex",
    "kernels": {"baked": 0, "jit_compiles": 0},
    "boot_seconds": {"selftest": 12.4},
    "selftest": [{"outcome": "fail", "cases": []}, {"outcome": "pass", "level": "standard", "cases": [1, 2, 3]}],
}


def _printed(**changed: Any) -> str:
    return "a line\n" + json.dumps({**BOOT, **changed}, indent=1) + "\nwhat came on stderr {\n"


def test_a_boot_that_passed_is_reported_with_what_it_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (9.0, 4.0, 1.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    report: dict[str, Any] = {}
    seen = dict(examine.boot_passed(report, _printed(), "boot", "IPEX"))
    words = "pass: IPEX (ipex), 3 cases, level standard, 0 compiled at boot, self-test 12 s"
    assert seen == {"boot": f"{words} (2 cores, load 4 over the last 5 minutes)"}
    assert report["kernels_at_boot"] == {"baked": 0, "jit_compiles": 0}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"verdict": "inconclusive"}, "the boot did not pass"),
        ({"selftest": []}, "the boot did not pass"),
        ({"backend": "TORCH_SDPA"}, "the boot chose TORCH_SDPA"),
        ({"kernels": {"baked": 0, "jit_compiles": 2}}, "2 compiled at boot"),
    ],
)
def test_any_other_boot_fails_the_examination(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(examine.ExamineError, match=message):
        dict(examine.boot_passed({}, _printed(**changed), "boot", "IPEX"))


def test_every_platform_that_is_built_is_examined() -> None:
    built = {name for name, platform in platforms.load().items() if not platform.not_built}
    assert built == set(examine.CHECKS) == set(examine.NOT_RUN)


def test_a_platform_that_is_not_built_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert examine.main(["rocm"]) == 2
    assert "PLATFORM rocm is not built: " in capsys.readouterr().err


def test_every_tpu_has_a_topology_to_compile_for() -> None:
    assert set(platforms.load()["tpu"].targets) == set(examine.TPUS)
