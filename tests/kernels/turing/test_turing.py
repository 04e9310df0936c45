"""Turing's tensor cores without a Turing card: the hook, and the machine code of every kernel and configuration."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed here")

import torch
import triton
from triton import knobs

import attnkit
from attnkit.backends.registry import all_backends
from attnkit.backends.triton_common import code_of, own
from attnkit.backends.turing import BACKENDS, CAPABILITY
from attnkit.errors import UnsupportedError
from attnkit.kernels.aot.variants import planned
from attnkit.kernels.triton.paged import plan as paged_plan
from attnkit.kernels.triton.targets import compile_launch, compiling_for
from attnkit.kernels.triton.tile_sizes import Tile
from attnkit.kernels.turing import hook as turing
from attnkit.kernels.turing import ptx
from attnkit.kernels.turing.emulate import TARGET_DEVICE, emulate
from attnkit.selftest.cases import Case
from attnkit.selftest.tensors import build
from attnkit.spec import AttentionSpec, PagedAttention, Softmax, VarlenAttention
from tools.kernels.machine_code import disassemble, inspect_ptx
from tools.kernels.turing_model import main_loop

HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """Compile here and now: nothing out of the user's cache."""
    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


@pytest.fixture
def hook():
    """The hook, installed; what was there before comes back."""
    turing.enable()
    yield
    turing.disable()


def program(python, script, *arguments):
    """Run a script of this directory with attnkit and its tools, and nothing else of this environment, on its path."""
    package = Path(attnkit.__file__).parent
    home = Path(knobs.cache.dir) / "path"
    home.mkdir(exist_ok=True)
    for name, folder in (("attnkit", package), ("tools", HERE.parents[2] / "tools")):
        if not (home / name).exists():
            (home / name).symlink_to(folder)
    environment = {**os.environ, "PYTHONPATH": str(home), "TRITON_CACHE_DIR": knobs.cache.dir, "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [python, str(HERE / script), *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@cache
def dots(python):
    """What turing_dots.py says under this Python."""
    return program(python, "turing_dots.py")


def pythons():
    """This Python, and those of other Triton versions where ATTNKIT_TRITON_PYTHONS names them."""
    return [sys.executable, *filter(None, os.environ.get("ATTNKIT_TRITON_PYTHONS", "").split(":"))]


@pytest.mark.parametrize("python", pythons())
def test_every_form_of_dot(python):
    found = dots(python)
    assert found["triton"] in turing.TESTED_TRITON
    assert set(found["stock"]["75"]["sass"]) == {"FFMA"}, "stock Triton has tensor cores on sm_75 now: is the hook needed?"
    made = {name: result.get("sass") for name, result in found["turing"].items()}
    assert made["fp16-fp32"] == {"HMMA.1688.F32": 64}
    assert made["fp16-fp16"] == {"HMMA.1688.F16": 64}
    assert made["int8"] == {"IMMA.8816.S8.S8.SAT": 64}
    assert made["fp8e5"] == {"HMMA.1688.F32": 64}
    assert set(made["fp32-ieee"]) == {"FFMA"}
    assert found["staged"]["load_before_dot"] and found["staged"]["store_after_dot"], "no double buffering through registers"
    assert set(found["staged"]["sass"]) == {"HMMA.1688.F32"}
    for refused, what in {"bf16": "bfloat16", "tf32": "tf32", "fp64": "float64"}.items():
        assert f"sm_75 has no {what} tensor cores" in found["turing"][refused]["error"]
    assert "shared memory on sm_75" in found["hungry"]["error"]
    assert "65536" in found["hungry"]["error"]


@pytest.mark.parametrize("python", pythons())
def test_other_capabilities_keep_code_and_key(python):
    found = dots(python)
    assert found["other"]["80"] == found["stock"]["80"]
    assert found["turing"]["fp16-fp32"]["hash"] != found["stock"]["75"]["hash"]
    assert found["after"]["75"] == found["stock"]["75"], "disable() leaves something behind"
    assert found["chained_calls"] == len(found["turing"]) + len(found["other"]) + 3, "the hook found first no longer runs"


def test_enable_is_idempotent_and_disable_restores():
    before = knobs.runtime.add_stages_inspection_hook
    turing.enable()
    first = knobs.runtime.add_stages_inspection_hook
    turing.enable()
    assert knobs.runtime.add_stages_inspection_hook is first
    assert turing.enabled()
    turing.disable()
    assert knobs.runtime.add_stages_inspection_hook is before
    assert not turing.enabled()


def test_a_hook_chained_later_is_seen_and_not_torn_out(hook):
    ours = knobs.runtime.add_stages_inspection_hook

    def later(*args):
        return ours(*args)

    later.previous = ours
    knobs.runtime.add_stages_inspection_hook = later
    try:
        turing.enable()
        assert knobs.runtime.add_stages_inspection_hook is later
        with pytest.raises(UnsupportedError, match="another stage hook"):
            turing.disable()
    finally:
        knobs.runtime.add_stages_inspection_hook = ours


@pytest.mark.parametrize("version", ["3.5.1", "3.10.0", "4.0.0+git1"])
def test_untested_triton_is_refused(version):
    with pytest.raises(UnsupportedError, match=r"not tested on Triton .* tested: 3\.6\.0"):
        turing.refuse_untested(version)


def test_this_triton_is_tested():
    turing.refuse_untested(triton.__version__)


def paged(head_dim, query_len, kv="auto", lse=False, **softmax):
    """Two sequences of 512 keys; `query_len` new tokens each."""
    cache_type = {"auto": torch.float16, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[kv]
    cache = torch.zeros(4, 16, 8, head_dim).to(cache_type)
    return PagedAttention(
        query=torch.zeros(2 * query_len, 32, head_dim, dtype=torch.float16),
        key_cache=cache,
        value_cache=cache,
        block_table=torch.zeros(2, 32, dtype=torch.int32),
        seq_lens=torch.full((2,), 512, dtype=torch.int32),
        query_start_loc=torch.tensor([0, query_len, 2 * query_len], dtype=torch.int32),
        max_query_len=query_len,
        max_seq_len=512,
        softmax=Softmax(head_dim**-0.5, **softmax),
        return_lse=lse,
    )


def varlen(head_dim):
    rows = torch.zeros(256, 32, head_dim, dtype=torch.float16)
    starts = torch.tensor([0, 128, 256], dtype=torch.int32)
    return VarlenAttention(rows, rows, rows, starts, starts, 128, 128, Softmax(head_dim**-0.5, causal=False))


SLOPES = torch.ones(32)
CALLS = {
    **{f"prefill d{d}": lambda d=d: paged(d, 128) for d in (64, 80, 128, 256)},
    **{f"decode d{d}": lambda d=d: paged(d, 1) for d in (64, 80, 128, 256)},
    **{f"varlen d{d}": lambda d=d: varlen(d) for d in (64, 128)},
    "window": lambda: paged(128, 128, window=(100, -1)),
    "softcap": lambda: paged(128, 128, softcap=30.0),
    "softcap window d256": lambda: paged(256, 128, softcap=50.0, window=(4095, -1)),
    "alibi sinks lse": lambda: paged(128, 128, alibi_slopes=SLOPES, sinks=SLOPES, lse=True),
    "fp8_e4m3": lambda: paged(128, 128, kv="fp8_e4m3"),
    "fp8_e5m2 decode": lambda: paged(128, 1, kv="fp8_e5m2"),
    "alibi sinks window softcap decode": lambda: paged(
        128, 1, alibi_slopes=SLOPES, sinks=SLOPES, softcap=30.0, window=(100, -1), lse=True
    ),
}


def case(op, head_dim, new=1, heads=(32, 8), head_dim_v=None, **changes):
    """A call of the self-test's building: two sequences of 512 keys, `new` new tokens each."""
    seqs = ((new, 512),) * 2
    return build(Case("", "", op, "float16", *heads, head_dim, head_dim_v or head_dim, 16, seqs, **changes))


FP8 = ("auto", "fp8_e4m3", "fp8_e5m2")
OTHERS = {
    "mla 512": (partial(case, "mla_decode", 576, 1, (128, 1), 512, lse=True), 0),
    "mla 512 fp8": (partial(case, "mla_decode", 576, 1, (16, 1), 512, kv_cache_dtype="fp8_e4m3"), 0),
    "tree 128": (partial(case, "tree", 128, 4, sinks=True, softcap=30.0, lse=True), 0),
    "large tree 128": (partial(case, "tree", 128, 64), 530),
    "dual chunk 128 of 1": (partial(case, "dual_chunk", 128, 1, kv_cache_dtype="fp8_e4m3"), 0),
    "dual chunk 128 of 128": (partial(case, "dual_chunk", 128, 128), 0),
    "differential 64 of 1": (partial(case, "differential", 64, 1), 0),
    "differential 128 of 128": (partial(case, "differential", 128, 128), 0),
}
ON_DEMAND = {
    **{
        f"mla {d} {kv}": (partial(case, "mla_decode", d + 64, 1, (16, 1), d, kv_cache_dtype=kv), 0)
        for d in (64, 128, 256)
        for kv in FP8
    },
    "mla 512 e5m2": (partial(case, "mla_decode", 576, 1, (16, 1), 512, kv_cache_dtype="fp8_e5m2"), 0),
    **{f"tree {d}": (partial(case, "tree", d, 4), 0) for d in (64, 256)},
    "few tokens 256": (partial(case, "paged", 256, 16), 340),
    "few tokens 256 fp8": (partial(case, "paged", 256, 16, kv_cache_dtype="fp8_e4m3"), 380),
    "tree of 64 rows 128": (partial(case, "tree", 128, 16), 960),
    "tree of 64 rows 256": (partial(case, "tree", 256, 16), 680),
    "large tree 64": (partial(case, "tree", 64, 64), 0),
    "large tree 256": (partial(case, "tree", 256, 64), 1000),
    **{f"dual chunk 64 of {n}": (partial(case, "dual_chunk", 64, n), 0) for n in (1, 128)},
    "dual chunk 256": (partial(case, "dual_chunk", 256, 128), 350),
    "differential 64 of 128": (partial(case, "differential", 64, 128), 0),
    "differential 128 of 1": (partial(case, "differential", 128, 1), 0),
}
"""Calls of the other backends, and the bytes that a thread may spill: where no tile was as fast that spills none."""

MULTIPLIES = {"paged_prefill", "paged_decode", "mla_decode_split", "dual_chunk_attention"}


@pytest.mark.parametrize("name", [*OTHERS, *(pytest.param(name, marks=pytest.mark.on_demand) for name in ON_DEMAND)])
def test_machine_code_of_the_other_backends(name, hook):
    """As above, with the context cut into splits."""
    make, spills = (OTHERS | ON_DEMAND)[name]
    seen = set()
    for launch in planned(make(), "sm_75", 4):
        kernel = launch.kernel.fn.__name__
        if kernel in MULTIPLIES:
            compiled = compile_launch(launch, "sm_75")
            cost = inspect_ptx(compiled.asm["ptx"], "sm_75")
            label = f"{name}: {kernel}"
            assert cost.spill_bytes <= spills, label
            assert compiled.shared <= ptx.SHARED_MEMORY_LIMIT, label
            assert cost.count("HMMA") == cost.count("HMMA.1688.F32") > 0, label
            seen.add(kernel)
    assert seen


def test_every_backend_of_ours_but_triton_attn_has_tensor_cores_on_turing():
    ours = [b.name for b in all_backends() if own(b, TARGET_DEVICE) is not None]
    assert {name: code_of(name, "sm_75") for name in ours} == {
        **dict.fromkeys(("TURING_ATTN", "TREE_ATTN", "TRITON_MLA"), "sm_75"),
        **dict.fromkeys(("DUAL_CHUNK_FLASH_ATTN", "DIFFERENTIAL_FLASH_ATTN"), "sm_75"),
        "TRITON_ATTN": "sm_75-scalar",
    }


def launches(call):
    if isinstance(call, VarlenAttention):
        return paged_plan.plan_varlen(call, arch="sm_75")[2]
    return [launch for n in (1, 4) for launch in paged_plan.plan_paged(call, arch="sm_75", splits=n)[2]]


@pytest.mark.parametrize("name", CALLS)
def test_machine_code(name, hook):
    """ptxas takes it, nothing spills, it fits 64 KB, and the products run on the tensor cores."""
    call = CALLS[name]()
    assert not CAPABILITY.reject(call.spec(), TARGET_DEVICE)
    seen = []
    for launch in launches(call):
        compiled = compile_launch(launch, "sm_75")
        cost = inspect_ptx(compiled.asm["ptx"], "sm_75")
        label = f"{name}: {compiled.kernel}"
        assert cost.spill_bytes == 0, label
        assert compiled.shared <= ptx.SHARED_MEMORY_LIMIT, label
        assert cost.count("LDGSTS") == 0, label
        if compiled.kernel != "merge_splits":
            seen.append(compiled.kernel)
            tensor, scalar = cost.count("HMMA.1688.F32") * 16 * 8 * 8, cost.count("FFMA", "HFMA2") * 32
            assert tensor > 0, label
            assert cost.count("HMMA") == cost.count("HMMA.1688.F32"), label
            assert scalar < 0.05 * tensor, f"{label}: {scalar} scalar multiply-adds a warp beside {tensor} on tensor cores"
    assert seen


STAGED = {
    "prefill d64": (paged(64, 128), {"prefill_tile": Tile(64, 64, 4, 2)}),
    "prefill d128": (paged(128, 128), {"prefill_tile": Tile(128, 32, 8, 2)}),
    "decode d128": (paged(128, 1), {"decode_tile": Tile(16, 64, 4, 2), "splits": 4}),
}


@pytest.mark.parametrize("name", STAGED)
def test_double_buffering_through_registers(name, hook):
    """num_stages=2: fewer barriers a step, no asynchronous copy, no spill."""
    call, tiles = STAGED[name]
    barriers = {}
    for stages in (1, 2):
        chosen = {k: replace(v, num_stages=stages) if isinstance(v, Tile) else v for k, v in tiles.items()}
        compiled = compile_launch(paged_plan.plan_paged(call, arch="sm_75", **chosen)[2][0], "sm_75")
        cost = inspect_ptx(compiled.asm["ptx"], "sm_75")
        assert cost.spill_bytes == 0
        assert cost.count("LDGSTS") == 0
        assert compiled.shared <= ptx.SHARED_MEMORY_LIMIT
        barriers[stages] = main_loop(disassemble(compiled.asm["ptx"], "sm_75"))["BAR.SYNC"]
    assert barriers[2] <= barriers[1]


def test_emulation_loads_ptx_under_a_key_of_its_own(hook):
    launch = launches(paged(64, 1))[0]
    with compiling_for("sm_75"):
        launch.kernel.device_caches.clear()
        plain = launch.warmup().hash
    with compiling_for("sm_80"):
        stand_in = triton.runtime.driver.active
        stand_in.utils = None
        keys = {}
        for stock in (False, True):
            with emulate(stock=stock) as device:
                assert (device.vendor, device.arch) == ("nvidia", "sm_75")
                assert turing.emulating()
                launch.kernel.device_caches.clear()
                kernel = launch.warmup()
                text = kernel.asm["cubin"].rstrip(b"\0").decode()
                assert text == kernel.asm["ptx"]
                assert ".target sm_75" in text
                assert ("m16n8k8" in text) is not stock
                keys[stock] = kernel.hash
        assert triton.runtime.driver.active is stand_in
    launch.kernel.device_caches.clear()
    assert not turing.emulating()
    assert len({*keys.values(), plain}) == 3


def test_backend_refuses_what_it_does_not_claim():
    (backend,) = BACKENDS
    spec = AttentionSpec(dtype="bfloat16")
    (reason,) = CAPABILITY.reject(spec, TARGET_DEVICE)
    assert reason.code == "dtype"
    (reason,) = CAPABILITY.reject(AttentionSpec(dtype="float16"), replace(TARGET_DEVICE, arch="sm_80"))
    assert reason.code == "arch"
    with pytest.raises(UnsupportedError, match="cannot run this call"):
        backend.run(paged(64, 1))


def test_vllm_kernel_gets_tensor_cores():
    """vLLM's own Triton attention kernel through the hook; the wheel's path comes from the environment."""
    wheel = os.environ.get("ATTNKIT_VLLM_WHEEL")
    if not wheel:
        pytest.importorskip(
            "vllm", reason="no vllm here and ATTNKIT_VLLM_WHEEL unset; see docs/reports/turing-vllm-kernel.json"
        )
    found = program(sys.executable, "vllm_attention.py", *([wheel] if wheel else []))
    for name, cost in found["sm_75"].items():
        assert cost["stock"]["HMMA.1688"] == 0, name
        assert cost["turing"]["HMMA.1688"] > 0, name
        assert cost["turing"]["FFMA"] < cost["stock"]["FFMA"] / 20, name
        assert cost["turing"]["spill_bytes"] == 0, name
        assert cost["turing"]["shared_bytes"] <= ptx.SHARED_MEMORY_LIMIT, name


def test_the_committed_vllm_report_is_of_this_kind(repo_root):
    report = json.loads((repo_root / "docs/reports/turing-vllm-kernel.json").read_text())
    assert report["command"].startswith("python tests/") and "vllm_attention.py" in report["command"]
    for name, cost in report["sm_75"].items():
        assert cost["turing"]["HMMA.1688"] > 0 == cost["stock"]["HMMA.1688"], name
