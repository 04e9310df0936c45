"""What people meet first: one reason where torch is missing, the command of each extra, true reasons of every provider."""

from __future__ import annotations

import pytest

from attnkit.backends.base import Reason, Rejected
from attnkit.errors import UsageError, how_to_install, require_packages
from attnkit.hardware.archs import pretend
from attnkit.select.choose import no_backend_text, select
from attnkit.spec import AttentionSpec
from attnkit.wording import short_reasons


@pytest.mark.parametrize(("arch", "extra"), [("x86_64", "cpu"), ("sm_90", "cuda"), ("gfx942", "rocm")])
def test_without_torch_there_is_one_reason(arch: str, extra: str) -> None:
    device = pretend(arch, "device")
    decision = select(device, AttentionSpec(), {})
    text = no_backend_text(decision.rejected, device.name, None, device.vendor)
    assert text.startswith("no backend can serve on device: torch is not installed: pip install 'attnkit[" + extra + "]'")
    assert len(text.splitlines()) == 1


def test_with_torch_every_reason_is_there() -> None:
    device = pretend("x86_64", "device")
    decision = select(device, AttentionSpec(head_dim=7), {"torch": "2.13.0"})
    assert len(no_backend_text(decision.rejected, device.name, None, "cpu").splitlines()) > 5


@pytest.mark.parametrize(
    ("packages", "command"),
    [
        (("torch",), "pip install 'attnkit[cpu]'"),
        (("torch", "triton"), "pip install 'attnkit[cuda]'"),
        (("torch", "jax"), "pip install 'attnkit[cpu,tpu]'"),
        (("matplotlib",), "pip install 'attnkit[bench]'"),
        (("vllm",), "pip install vllm"),
    ],
)
def test_each_missing_extra_has_its_command(packages: tuple[str, ...], command: str) -> None:
    assert how_to_install(packages) == command


def test_a_missing_dependency_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"attnkit kernels needs no_such_package, not installed here: pip install no_such"):
        require_packages("attnkit kernels", "no_such_package")


def test_reasons_of_every_provider_are_told() -> None:
    """A device that rules out one provider says nothing about the other."""
    two = (Reason("arch", "a: needs sm_10x; H100 is sm_90"), Reason("not_installed", "b: flashinfer-python is not installed"))
    assert short_reasons(two) == [reason.message for reason in two]
    all_device = (
        Reason("arch", "a: needs sm_10x"),
        Reason("device", "b: needs sm_10x"),
        Reason("not_installed", "a: x is not"),
    )
    assert short_reasons(all_device) == ["needs sm_10x"]
    assert short_reasons([{"code": "op", "message": "does not implement paged"}]) == ["does not implement paged"]
    assert short_reasons(Rejected("X", (Reason("device", "runs on amd, not on cpu"),)).reasons) == ["runs on amd, not on cpu"]


def test_what_is_usable_comes_first_and_the_rest_by_cause(capsys: pytest.CaptureFixture[str]) -> None:
    from attnkit.cli.tables import show_catalog
    from attnkit.select.catalog import catalog

    rows = catalog()
    show_catalog(rows)
    lines = capsys.readouterr().out.splitlines()
    usable = {row.name for row in rows if row.usable}
    assert lines[0].startswith("usable here")
    assert lines[1].split()[0] in usable
    first_cause = lines.index("")
    assert all(not any(name in line for line in lines[first_cause:]) for name in usable)
    assert any(line.strip() == "runs on amd" for line in lines), "several backends share a cause"
    assert max(map(len, lines)) <= 80
