"""The checker sees what it is for: made packages that differ from what our `run` calls, and a `run` that calls them wrongly."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attnkit.backends.base import Backend
from attnkit.backends.registry import get
from tools.contracts import check as contract_check
from tools.contracts.check import Check, check, check_file
from tools.contracts.package import Definition, Package
from tools.contracts.stand_in import ContractError, Recorder, standing_in
from tools.contracts.table import CONTRACTS, Contract

SGL = replace(next(c for c in CONTRACTS if c.provider == "sgl-kernel"), facts={}, operators={})
GOOD = """
import torch

def cutlass_mla_decode(q_nope: torch.Tensor, q_pe: torch.Tensor, kv_c_and_k_pe_cache: torch.Tensor, seq_lens: torch.Tensor,
                       page_table: torch.Tensor, workspace: torch.Tensor, sm_scale: float, num_kv_splits: int = 1):
    raise AssertionError("nothing of the package runs")

def cutlass_mla_get_workspace_size(max_seq_len: int, num_batches: int, sm_count: int = 0, num_kv_splits: int = 1) -> int:
    raise AssertionError("nothing of the package runs")
"""
EXPORT = "from sgl_kernel.attention import *\n"


def wheel(folder: Path, name: str, **modules: str) -> Path:
    """A wheel of the given modules; `pkg__mod` is pkg/mod.py, `pkg` is pkg/__init__.py, a path is itself."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for module, text in modules.items():
            file = module.replace("__", "/") + (".py" if "__" in module else "/__init__.py")
            archive.writestr(module if module.endswith(".py") else file, text)
    return path


def checked(folder: Path, attention: str, export: str = EXPORT) -> Check:
    return check_file(SGL, wheel(folder, "sgl_kernel", sgl_kernel=export, sgl_kernel__attention=attention))


def test_a_package_as_we_call_it_passes_through_a_star_import(tmp_path: Path) -> None:
    done = checked(tmp_path, GOOD)
    assert done.ok, done.detail
    assert done.version == "1.0"
    assert "cutlass_mla_decode" in done.detail


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("sm_scale: float", "scale: float", "missing a required argument: 'scale'"),
        ("num_kv_splits: int = 1)", "splits: int = 1)", "unexpected keyword argument 'num_kv_splits'"),
        ("def cutlass_mla_decode", "def cutlass_mla", "cutlass_mla_decode"),
        ("num_kv_splits: int = 1)", "num_kv_splits: int = 1, *, stream)", "stream"),
        ("sm_scale: float", "sm_scale: torch.Tensor", "sm_scale is a torch.Tensor"),
        ("page_table: torch.Tensor", "page_table: int", "page_table is a int"),
    ],
)
def test_an_upstream_change_is_seen(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    done = checked(tmp_path, GOOD.replace(old, new, 1))
    assert not done.ok
    assert said in done.detail


def test_a_name_no_longer_exported_is_seen(tmp_path: Path) -> None:
    done = checked(tmp_path, GOOD, export="from sgl_kernel.attention import cutlass_mla_decode\n")
    assert not done.ok
    assert "cutlass_mla_get_workspace_size" in done.detail


def wrongly(monkeypatch: pytest.MonkeyPatch, contract: Contract, change: Callable[[Any], Any]) -> None:
    """Inside the test, the contract's provider runs a changed call."""

    def changed(name: str) -> Backend:
        found = get(name)
        if found.name != contract.backend:
            return found
        providers = (
            replace(p, run=lambda call, right=p.run: right(change(call))) if p.name == contract.provider else p
            for p in found.providers
        )
        return replace(found, providers=tuple(providers))

    monkeypatch.setattr(contract_check, "get", changed)


def test_a_wrong_call_of_ours_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrongly(monkeypatch, SGL, lambda call: replace(call, seq_lens=call.seq_lens + 1))
    done = checked(tmp_path, GOOD)
    assert not done.ok
    assert "something other than call.seq_lens as seq_lens" in done.detail


def test_a_fact_that_is_gone_is_seen(tmp_path: Path) -> None:
    file = wheel(tmp_path, "sgl_kernel", sgl_kernel=EXPORT, sgl_kernel__attention=GOOD)
    done = check_file(replace(SGL, facts={"sgl_kernel.attention": ("return out[:, :H]",)}), file)
    assert not done.ok
    assert "return out[:, :H]" in done.detail


def test_an_operator_schema_is_read_from_the_compiled_module_and_compared(tmp_path: Path) -> None:
    path = wheel(tmp_path, "sgl_kernel", sgl_kernel=EXPORT, sgl_kernel__attention=GOOD)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("sgl_kernel/ops.abi3.so", b"\0\1decode\0decode(Tensor q,     float scale) -> ()\0\2")
    assert Package(path, ("sgl_kernel",)).operator("sgl_kernel.ops", "decode") == "decode(Tensor q, float scale) -> ()"
    key = ("sgl_kernel.ops", "decode")
    assert check_file(replace(SGL, operators={key: "(Tensor q, float scale) -> ()"}), path).ok
    done = check_file(replace(SGL, operators={key: "(Tensor q, Tensor k, float scale) -> ()"}), path)
    assert not done.ok
    assert "decode(Tensor q, float scale) -> ()" in done.detail


def test_stand_ins_leave_no_trace_in_the_imported_modules(tmp_path: Path) -> None:
    before = set(sys.modules)
    assert checked(tmp_path, GOOD).ok
    assert not [name for name in set(sys.modules) - before if name.startswith("sgl_kernel")]


CLASSES = """
from typing import Any, overload

class Base:
    @overload
    def run(self, q) -> int: ...
    def run(self, q, *, return_lse=False): ...
    def plan(self, indptr, *old: Any, **kwargs: Any): return self._plan(indptr, **kwargs)
    def _plan(self, indptr, *, scale=None): ...
    begin = plan

class Wrapper(Base):
    def __init__(self, workspace): ...
    @classmethod
    def make(cls, n: int) -> "Wrapper": ...
"""


@pytest.fixture
def wrapper(tmp_path: Path) -> Any:
    recorder = Recorder(Package(wheel(tmp_path, "demo", demo=CLASSES), ("demo",)), {})
    with standing_in(recorder):
        from demo import Wrapper  # type: ignore[import-not-found]

        yield Wrapper


def test_methods_are_found_in_bases_behind_overloads_and_aliases(wrapper: Any) -> None:
    one = wrapper(workspace=1)
    one.run(2, return_lse=True)
    one.begin(3, scale=1.0)
    wrapper.make(4).run(5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda w: w(), "workspace"),
        (lambda w: w(1).run(2, lse=True), "lse"),
        (lambda w: w(1).go(), "no method go"),
        (lambda w: w(1).plan(3, sm_scale=1.0), "sm_scale"),
        (lambda w: w.make("4"), "n is a int there and gets a str"),
        (lambda w: w.run(2), "neither a class method"),
    ],
)
def test_calls_that_do_not_fit_a_class_are_refused(wrapper: Any, call: Any, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        call(wrapper)


def test_a_definition_is_followed_through_relative_imports_and_conditions(tmp_path: Path) -> None:
    package = Package(
        wheel(
            tmp_path,
            "demo",
            demo="try:\n    from .ops import go as start\nexcept ImportError:\n    start = None\n",
            demo__ops="def go(a): ...\n",
        ),
        ("demo",),
    )
    found = package.find("demo", "start")
    assert isinstance(found, Definition)
    assert (found.module, found.name) == ("demo.ops", "go")
    assert package.find("demo", "ops") == "demo.ops"
    assert package.find("demo", "stop") is None


XFORMERS = {
    "xformers/ops/__init__.py": "def memory_efficient_attention_forward(query, key, value, attn_bias, p, scale): ...\n",
    "xformers/ops/fmha/attn_bias.py": """
class Causal:
    def make_local_attention_from_bottomright(self, window_size: int): ...

class BlockDiagonalMask:
    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen, *, device=None) -> "BlockDiagonalMask": ...
    def make_causal_from_bottomright(self) -> "Causal": ...
""",
}


def test_xformers_never_sees_the_queries_that_no_key_precedes(tmp_path: Path) -> None:
    """Its causal mask raises where a sequence has more queries than keys; such rows are zero."""
    import torch

    from attnkit.backends import xformers
    from attnkit.spec import Softmax, VarlenAttention

    package = Package(wheel(tmp_path, "xformers", **XFORMERS), ("xformers",))
    recorder = Recorder(package, {"memory_efficient_attention_forward": lambda a: torch.ones_like(a["query"])})
    query_starts, key_starts = torch.tensor([0, 5, 7]), torch.tensor([0, 3, 9])
    key = torch.randn(9, 4, 32)
    call = VarlenAttention(torch.randn(7, 4, 32), key, key, query_starts, key_starts, 5, 6, Softmax(0.2))
    with standing_in(recorder):
        out, _, _ = xformers._xformers(call, key, key, key_starts)
    made = next(c.arguments for c in recorder.calls if c.function == "BlockDiagonalMask.from_seqlens")
    assert (made["q_seqlen"], made["kv_seqlen"]) == ([3, 2], [3, 6])
    assert out[:, 0, 0].tolist() == [0, 0, 1, 1, 1, 1, 1]


def test_a_wrong_result_of_the_installed_package_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = next(c for c in CONTRACTS if c.installed)
    assert check(contract, tmp_path).ok
    wrongly(monkeypatch, contract, lambda call: call.with_softmax(softmax_scale=2 * call.softmax.softmax_scale))
    done = check(contract, tmp_path)
    assert not done.ok
    assert "from TORCH_SDPA" in done.detail
