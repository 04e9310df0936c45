"""The selector: a pure function, so its laws are checked on generated devices, needs and installations."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnkit.backends.base import Backend, Rejected
from attnkit.backends.installed import installed_versions, requirement_names
from attnkit.backends.registry import all_backends, canonical, spellings
from attnkit.backends.versions import find_version, split_requirement
from attnkit.errors import UnsupportedError, UsageError
from attnkit.hardware.device import Device
from attnkit.profiles.files import load_workload, workload_names
from attnkit.select.choose import _WORKLOAD_OP, Decision, no_backend_text, select
from attnkit.spec import DTYPES, FEATURES, KV_CACHE_DTYPES, OPS, PHASES, AttentionSpec

DEVICES = [
    *(Device("nvidia", "gpu", f"card {sm}", f"sm_{sm}") for sm in (70, 75, 80, 86, 89, 90, 100, 120)),
    *(Device("amd", "gpu", arch, arch) for arch in ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx906")),
    *(Device("intel", "gpu", arch, arch) for arch in ("xe-hpg", "xe-hpc")),
    Device("google", "tpu", "TPU", "tpu-v5e"),
    Device("cpu", "cpu", "CPU", "x86_64"),
    Device("cpu", "cpu", "CPU", "aarch64"),
]
NAMES = [b.name for b in all_backends()]
EVERYTHING = {
    name: {"torch": "2.8.0", "triton": "3.6.0", "flash-attn": "2.8.3", "intel-extension-for-pytorch": "2.8.0"}.get(name, "99.0")
    for name in requirement_names(all_backends())
} | {"attnkit-triton-interpreter": None, "attnkit-pallas-interpreter": None}


def device(arch: str) -> Device:
    return next(d for d in DEVICES if d.arch == arch)


@st.composite
def specs(draw: st.DrawFn) -> AttentionSpec:
    kv_heads = draw(st.sampled_from([1, 2, 8]))
    dim, dim_v = draw(st.sampled_from([(64, None), (72, None), (128, None), (256, None), (576, 512)]))
    return AttentionSpec(
        op=draw(st.sampled_from(OPS)),
        dtype=draw(st.sampled_from(DTYPES)),
        num_heads=kv_heads * draw(st.sampled_from([1, 4, 16])),
        num_kv_heads=kv_heads,
        head_dim=dim,
        head_dim_v=dim_v,
        kv_cache_dtype=draw(st.sampled_from(KV_CACHE_DTYPES)),
        block_size=draw(st.sampled_from([None, 1, 16, 64, 256])),
        features=draw(st.frozensets(st.sampled_from(FEATURES), max_size=2)),
    )


INSTALLED = st.fixed_dictionaries({name: st.sampled_from([version, None]) for name, version in EVERYTHING.items()})
laws = settings(max_examples=60, deadline=None)


@laws
@given(st.sampled_from(DEVICES), specs(), INSTALLED, st.none() | st.lists(st.sampled_from(NAMES), max_size=4))
def test_every_backend_is_judged_once_and_the_order_is_kept(dev, spec, installed, order) -> None:
    decision = select(dev, spec, installed, order=order, order_source="test")
    assert decision == select(dev, spec, installed, order=order, order_source="test")
    accepted = [a.backend for a in decision.accepted]
    assert sorted(accepted + [r.backend for r in decision.rejected]) == sorted(NAMES)
    assert accepted == [name for name in decision.order if name in accepted]
    assert all(r.reasons and all(x.code and x.message for x in r.reasons) for r in decision.rejected)
    assert "NO_ATTENTION" not in accepted


@laws
@given(st.sampled_from(DEVICES), specs(), st.sampled_from(sorted(EVERYTHING)))
def test_removing_a_library_never_adds_a_backend(dev, spec, removed) -> None:
    full = {a.backend for a in select(dev, spec, EVERYTHING).accepted}
    less = {a.backend for a in select(dev, spec, {**EVERYTHING, removed: None}).accepted}
    assert less <= full


@laws
@given(st.sampled_from(DEVICES), specs(), INSTALLED, st.sampled_from(sorted(spellings())))
def test_an_explicit_choice_is_never_replaced(dev, spec, installed, spelling) -> None:
    name = canonical(spelling)
    decision = select(dev, spec, installed, explicit=spelling.upper(), order=["TORCH_SDPA"])
    assert decision.explicit == name and decision.order == (name,) and decision.order_source == "explicit"
    assert [a.backend for a in decision.accepted] in ([], [name])
    judged = next(b for b in all_backends() if b.name == name).evaluate(spec, dev, installed)
    assert bool(decision.accepted) == (not isinstance(judged, Rejected))


@laws
@given(st.sampled_from(DEVICES), specs(), INSTALLED, st.none() | st.sampled_from(NAMES))
def test_what_is_accepted_claims_the_need_and_is_installed(dev, spec, installed, explicit) -> None:
    """Sound whoever asks: the provider that is named has no reason against it, by its own capability and requirements."""
    for accepted in select(dev, spec, installed, explicit=explicit).accepted:
        backend = next(b for b in all_backends() if b.name == accepted.backend)
        provider = next(p for p in backend.providers if p.name == accepted.provider)
        assert dev.vendor in provider.capability.archs
        assert provider.capability.reject(spec, dev) == ()
        assert all(installed[split_requirement(text)[0]] is not None for text in provider.requires)


@laws
@given(st.sampled_from(DEVICES), specs(), st.sampled_from(FEATURES), st.sampled_from(PHASES))
def test_asking_for_more_never_adds_a_backend(dev, spec, feature, phase) -> None:
    """Every name is in the order, so that only what the backends claim decides."""
    less = replace(spec, features=spec.features - {feature}, phases=spec.phases - {phase})
    more = replace(spec, features=spec.features | {feature}, phases=spec.phases | {phase})
    serve_less, serve_more = ({a.backend for a in select(dev, s, EVERYTHING, order=NAMES).accepted} for s in (less, more))
    assert serve_more <= serve_less


@laws
@given(st.sampled_from(DEVICES), specs(), INSTALLED)
def test_what_is_impossible_is_never_accepted(dev, spec, installed) -> None:
    accepted = {a.backend for a in select(dev, spec, installed, order=NAMES).accepted}
    if dev.arch == "sm_75":
        assert "FLASH_ATTN" not in accepted
        if spec.dtype == "bfloat16":
            assert accepted == set()
    if (spec.head_dim, spec.value_dim) == (72, 72):
        assert "FLASHINFER" not in accepted
    if spec.op == "mla_decode":
        assert accepted <= {*MLA_BACKENDS, "TORCH_SDPA"}
    elif spec.op in ("paged", "varlen"):
        assert not accepted & MLA_BACKENDS
    if dev.vendor == "google":
        assert accepted <= {"PALLAS"}


MLA_BACKENDS = {"FLASH_ATTN_MLA", "FLASHMLA", "CUTLASS_MLA", "FLASHINFER_MLA", "ROCM_AITER_MLA", "TRITON_MLA"}


@laws
@given(st.sampled_from(DEVICES), specs(), INSTALLED, st.integers(0, 7))
def test_which_of_several_cards_it_is_changes_nothing(dev, spec, installed, index) -> None:
    here, there = (select(replace(dev, index=i), spec, installed) for i in (0, index))
    assert (here.accepted, here.rejected, here.order) == (there.accepted, there.rejected, there.order)


def reasons(decision: Decision, name: str) -> str:
    return "; ".join(f"{r.code}: {r.message}" for x in decision.rejected if x.backend == name for r in x.reasons)


@pytest.mark.parametrize(
    ("arch", "dtype", "first"),
    [
        ("sm_90", "bfloat16", ["FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "TORCH_SDPA"]),
        ("sm_80", "bfloat16", ["FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "TORCH_SDPA"]),
        ("sm_100", "bfloat16", ["FLASHINFER", "FLASH_ATTN", "TRITON_ATTN", "TORCH_SDPA"]),
        ("sm_120", "bfloat16", ["FLASH_ATTN", "TRITON_ATTN", "TORCH_SDPA"]),
        ("sm_75", "float16", ["TURING_ATTN", "XFORMERS", "TRITON_ATTN", "TORCH_SDPA"]),
        ("gfx942", "bfloat16", ["ROCM_AITER_FA", "ROCM_FLASH", "TRITON_ATTN", "TORCH_SDPA"]),
        ("gfx1100", "bfloat16", ["ROCM_FLASH", "TRITON_ATTN", "TORCH_SDPA"]),
        ("xe-hpc", "bfloat16", ["IPEX", "TRITON_ATTN", "TORCH_SDPA"]),
        ("tpu-v5e", "bfloat16", ["PALLAS"]),
        ("x86_64", "bfloat16", ["IPEX", "TORCH_SDPA"]),
    ],
)
def test_with_everything_installed_a_device_gets_its_row(arch, dtype, first) -> None:
    decision = select(device(arch), AttentionSpec(dtype=dtype), EVERYTHING)
    assert [a.backend for a in decision.accepted] == first
    assert decision.order_source == f"built-in for {arch}"


MLA = AttentionSpec(
    op="mla_decode", num_heads=128, num_kv_heads=1, head_dim=576, head_dim_v=512, block_size=64, phases=frozenset({"decode"})
)


@pytest.mark.parametrize(
    ("arch", "first"),
    [
        ("sm_90", ["FLASH_ATTN_MLA", "FLASHMLA", "TRITON_MLA"]),
        ("sm_100", ["FLASHINFER_MLA", "CUTLASS_MLA", "TRITON_MLA"]),
        ("sm_80", ["TRITON_MLA"]),
        ("gfx942", ["ROCM_AITER_MLA", "TRITON_MLA"]),
    ],
)
def test_mla_has_a_row_of_its_own_even_under_a_node_order(arch, first) -> None:
    built_in = select(device(arch), MLA, EVERYTHING)
    assert [a.backend for a in built_in.accepted][: len(first)] == first
    under_profile = select(device(arch), MLA, EVERYTHING, order=["FLASH_ATTN", "TORCH_SDPA"], order_source="profile x")
    assert [a.backend for a in under_profile.accepted] == [*first, "TORCH_SDPA"]
    assert under_profile.order_source == "profile x, led by the backends for mla_decode"


def test_a_node_order_that_names_an_mla_backend_is_taken_as_it_is() -> None:
    decision = select(device("sm_90"), MLA, EVERYTHING, order=["TRITON_MLA"], order_source="profile x")
    assert decision.order == ("TRITON_MLA",) and decision.order_source == "profile x"


@pytest.mark.parametrize(("op", "name"), [("tree", "TREE_ATTN"), ("dual_chunk", "DUAL_CHUNK_FLASH_ATTN")])
def test_special_operations_get_the_backend_made_for_them(op, name) -> None:
    decision = select(device("sm_90"), AttentionSpec(op=op), EVERYTHING, order=["FLASH_ATTN"], order_source="profile x")
    assert decision.chosen is not None and decision.chosen.backend == name


def test_a_score_function_leads_to_flex_attention() -> None:
    decision = select(device("sm_90"), AttentionSpec(features=frozenset({"score_mod"})), EVERYTHING, order=["FLASH_ATTN"])
    assert decision.chosen is not None and decision.chosen.backend == "FLEX_ATTENTION"
    assert "score_mod" in reasons(decision, "FLASH_ATTN")


def test_fa3_on_hopper_and_fa2_before() -> None:
    for arch, provider in (("sm_90", "vllm_flash_attn-fa3"), ("sm_80", "vllm_flash_attn-fa2")):
        chosen = select(device(arch), AttentionSpec(), EVERYTHING).chosen
        assert chosen is not None and (chosen.backend, chosen.provider) == ("FLASH_ATTN", provider)


def test_a_float8_cache_on_ampere_goes_to_flashinfer() -> None:
    decision = select(device("sm_80"), AttentionSpec(kv_cache_dtype="fp8_e4m3"), EVERYTHING)
    assert decision.chosen is not None and decision.chosen.backend == "FLASHINFER"
    assert "kv_cache_dtype" in reasons(decision, "FLASH_ATTN")


def test_turing_is_told_what_it_lacks() -> None:
    decision = select(device("sm_75"), AttentionSpec(), EVERYTHING)
    assert decision.accepted == ()
    assert "needs sm_80 or newer; card 75 is sm_75" in reasons(decision, "FLASH_ATTN")
    for name in ("TURING_ATTN", "XFORMERS", "TRITON_ATTN", "TORCH_SDPA"):
        assert "dtype: " in reasons(decision, name), name


def test_what_could_serve_but_is_not_in_the_order_is_policy() -> None:
    decision = select(device("sm_90"), AttentionSpec(), EVERYTHING, order=["TRITON_ATTN"], order_source="profile x")
    assert reasons(decision, "FLASH_ATTN") == "policy: could serve, but is not in the order (profile x)"


def test_no_attention_only_by_an_explicit_choice() -> None:
    for kwargs in ({"order": ["NO_ATTENTION"]}, {"order": ["NO_ATTENTION"], "workload": "debug"}):
        decision = select(device("x86_64"), AttentionSpec(), EVERYTHING, **kwargs)
        assert decision.accepted == () and "policy" in reasons(decision, "NO_ATTENTION")
    decision = select(device("x86_64"), AttentionSpec(), EVERYTHING, explicit="no_attention")
    assert decision.chosen is not None and decision.chosen.backend == "NO_ATTENTION"


def test_unknown_names_are_usage_errors_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"Did you mean .*FLASH_ATTN"):
        select(device("sm_90"), AttentionSpec(), EVERYTHING, explicit="FLASH_ATN")
    with pytest.raises(UsageError, match="TRITON_ATTN"):
        select(device("sm_90"), AttentionSpec(), EVERYTHING, order=["TRITON_ATN"])


def test_a_workload_that_does_not_fit_the_need_is_said() -> None:
    assert select(device("sm_90"), AttentionSpec(), EVERYTHING, workload="mla").warnings
    assert not select(device("sm_90"), MLA, EVERYTHING, workload="mla").warnings
    ops = {name: load_workload(name).op for name in workload_names()}
    assert {name: op for name, op in ops.items() if op != "paged"} == _WORKLOAD_OP


ALIASES = {
    "FLASH_ATTN": ["FLASH_ATTN_VLLM_V1", "flash_attn"],
    "TRITON_ATTN": ["TRITON_ATTN_VLLM_V1", "triton", "triton_attn"],
    "XFORMERS": ["XFORMERS_VLLM_V1", "xformers"],
    "TORCH_SDPA": ["TORCH_SDPA_VLLM_V1", "torch"],
    "FLEX_ATTENTION": ["flex_attention", "flex"],
    "NO_ATTENTION": [],
    "TREE_ATTN": [],
    "TRITON_MLA": ["TRITON_MLA_VLLM_V1"],
    "FLASHMLA": ["FLASHMLA_VLLM_V1"],
    "CUTLASS_MLA": [],
    "FLASH_ATTN_MLA": [],
    "FLASHINFER": ["FLASHINFER_VLLM_V1", "flashinfer"],
    "FLASHINFER_MLA": [],
    "ROCM_FLASH": ["ROCM_ATTN"],
    "ROCM_AITER_FA": [],
    "ROCM_AITER_MLA": ["ROCM_AITER_MLA_VLLM_V1"],
    "IPEX": [],
    "PALLAS": ["PALLAS_VLLM_V1"],
    "DUAL_CHUNK_FLASH_ATTN": [],
    "DIFFERENTIAL_FLASH_ATTN": [],
    "TURING_ATTN": ["turing"],
}
"""What users write, from manuals and scripts: a promise, so it is written here a second time on purpose."""


def test_every_promised_spelling_is_accepted_in_any_case() -> None:
    assert set(NAMES) == set(ALIASES)
    for name, aliases in ALIASES.items():
        for spelling in (name, *aliases):
            assert canonical(spelling.lower()) == canonical(spelling.upper()) == name


def test_an_installed_library_has_its_version_and_an_absent_one_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = installed_versions()
    assert set(found) == set(requirement_names(all_backends()))
    assert find_version("packaging") is not None and find_version("no-such-library") is None
    assert find_version("yaml.constructor") == find_version("PyYAML") or find_version("yaml.constructor") is not None
    assert find_version("yaml.no_such_module") is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert find_version("attnkit-triton-interpreter") == "1"
    monkeypatch.delenv("TRITON_INTERPRET")
    assert find_version("attnkit-triton-interpreter") is None


def test_requirements_are_split_into_name_and_versions() -> None:
    assert split_requirement("torch>=2.8,<2.9") == ("torch", ">=2.8,<2.9")
    assert split_requirement("vllm.vllm_flash_attn._vllm_fa3_C") == ("vllm.vllm_flash_attn._vllm_fa3_C", "")


def test_a_version_outside_the_range_is_a_reason() -> None:
    decision = select(device("sm_90"), AttentionSpec(), {**EVERYTHING, "triton": "3.99.0"})
    assert "version: " in reasons(decision, "TRITON_ATTN") and "3.99.0 is installed" in reasons(decision, "TRITON_ATTN")


@pytest.mark.parametrize("backend", all_backends(), ids=lambda b: b.name)
def test_an_unknown_provider_is_refused_by_name(backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    from attnkit.spec import PagedAttention, Softmax

    cache = torch.zeros(1, 16, 1, 64)
    one = torch.tensor([1], dtype=torch.int32)
    call = PagedAttention(
        torch.zeros(1, 1, 64), cache, cache, torch.zeros(1, 1, dtype=torch.int32), one, torch.tensor([0, 1]), 1, 1, Softmax(1.0)
    )
    with pytest.raises(UnsupportedError, match="no-such-provider"):
        backend.require(call, Device("cpu", "cpu", "CPU", "x86_64"), "no-such-provider")


def test_selection_imports_neither_torch_nor_jax_nor_a_vendor_library() -> None:
    code = (
        "import sys; from attnkit.select import *; from attnkit.profiles import *;"
        "from attnkit.select.model_config import *; from attnkit.hardware.device import Device;"
        "from attnkit.engines.vllm.names import resolve; resolve('XFORMERS', '0.33.0'); all_nodes();"
        "select(Device('nvidia', 'gpu', 'x', 'sm_90'), need_from_config('llama-3').specs[0], installed_versions());"
        "print([m for m in ('torch', 'jax', 'triton', 'numpy', 'vllm', 'xformers', 'flashinfer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_turing_without_tensor_cores_is_said_and_takes_what_is_faster_there() -> None:
    gtx = Device("nvidia", "gpu", "NVIDIA GeForce GTX 1660", "sm_75", features=("no-tensor-cores",))
    decision = select(gtx, AttentionSpec(dtype="float16"), EVERYTHING)
    assert [a.backend for a in decision.accepted] == ["XFORMERS", "TRITON_ATTN", "TORCH_SDPA"]
    assert "needs tensor cores; NVIDIA GeForce GTX 1660 is sm_75 made without them" in reasons(decision, "TURING_ATTN")


def test_a_device_that_cannot_be_used_is_refused_by_every_backend_for_that_reason() -> None:
    lost = Device("nvidia", "gpu", "H100", "sm_90", features=("lost",), problem="0000:1b:00.0: it has fallen off the bus")
    decision = select(lost, AttentionSpec(), EVERYTHING)
    assert decision.accepted == ()
    assert {(r.code, r.message) for x in decision.rejected for r in x.reasons} == {("device", lost.problem)}
    text = no_backend_text(decision.rejected, "H100", None)
    assert text == "no backend can serve on H100: 0000:1b:00.0: it has fallen off the bus"
