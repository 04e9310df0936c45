"""What vLLM's workers say that they built; with vLLM here, a backend that is swapped after the census is caught."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attnkit.engines.vllm import serving_census
from attnkit.engines.vllm.serving_census import SILENCE, read

ROOT = Path(__file__).parents[3]
RECORDED = json.loads((ROOT / "tests/data/served-layers.json").read_text("utf-8"))
"""What a worker of vLLM 0.32.0 on CPU wrote for `attnkit tiny-model`."""
PLUGIN = ROOT / "tests/data/swapping-plugin"


def put(folder: Path, *documents: Any) -> Path:
    for number, document in enumerate(documents):
        (folder / f"{number}.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return folder


def test_a_recorded_worker_is_read(tmp_path: Path) -> None:
    spoken = read(put(tmp_path, RECORDED))
    assert spoken.problems == ()
    (rank,) = spoken.ranks
    assert (rank.version, rank.replica, rank.rank, rank.here) == ("0.32.0", 0, 0, 1)
    (layers,) = rank.census.counted
    assert (layers.kind.count, layers.backend, layers.layer_class) == (4, "CPU_ATTN", "Attention")
    assert layers.implementation == (
        "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend",
        "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackendImpl",
    )
    assert (layers.kind.spec.num_heads, layers.kind.spec.num_kv_heads, layers.kind.spec.head_dim) == (4, 2, 64)


def test_several_ranks_and_backends_are_several_facts(tmp_path: Path) -> None:
    first, *others = RECORDED["layers"]
    mixed = RECORDED | {"rank": 1, "here": 2, "layers": [first | {"backend": "FLEX_ATTENTION"}, *others]}
    spoken = read(put(tmp_path, mixed, RECORDED | {"here": 2}))
    assert spoken.problems == ()
    assert [(rank.rank, one.kind.count, one.backend) for rank in spoken.ranks for one in rank.census.counted] == [
        (0, 4, "CPU_ATTN"),
        (1, 1, "FLEX_ATTENTION"),
        (1, 3, "CPU_ATTN"),
    ]


def test_every_replica_must_be_heard(tmp_path: Path) -> None:
    spoken = read(put(tmp_path, RECORDED | {"replica": 1}), replicas=2)
    assert spoken.problems == ("workers of 1 of 2 replicas said which layers they built; the others may differ",)
    spoken = read(put(tmp_path, RECORDED | {"replica": 1}, RECORDED), replicas=2)
    assert spoken.problems == () and [(rank.replica, rank.rank) for rank in spoken.ranks] == [(0, 0), (1, 0)]


@pytest.mark.parametrize(
    ("documents", "problem"),
    [
        ((), SILENCE),
        ((RECORDED | {"here": 2},), "1 of 2 ranks said which layers they built; the others may differ"),
        (({"problem": "a worker's layers cannot be read: AttributeError: x"},), "a worker's layers cannot be read"),
        (({"version": "0.32.0"},), "a worker's layers are not understood: KeyError"),
        ((RECORDED | {"layers": [{"kind": "decoder"}]},), "a worker's layers are not understood"),
        (([1, 2],), "a worker's layers are not understood"),
        (("{",), "not JSON"),
        ((" " * (serving_census.MOST_BYTES + 1),), "the most that is read"),
    ],
)
def test_what_is_missing_or_broken_is_said(tmp_path: Path, documents: tuple[Any, ...], problem: str) -> None:
    spoken = read(put(tmp_path, *documents))
    assert len(spoken.problems) == 1 and problem in spoken.problems[0]


def test_without_a_channel_there_is_silence(tmp_path: Path) -> None:
    assert read(None).problems == (SILENCE,)
    os.mkfifo(tmp_path / "pipe.json")
    assert "is not a regular file" in read(tmp_path).problems[0], "reading it might never end"


def test_a_vllm_whose_workers_moved_says_so_and_serves_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "path"
    (package / "vllm/v1/worker").mkdir(parents=True)
    for folder in ("vllm", "vllm/v1", "vllm/v1/worker"):
        (package / folder / "__init__.py").touch()
    (package / "vllm/v1/worker/worker_base.py").write_text("class WorkerWrapperBase: pass\n")
    monkeypatch.setenv("ATTNKIT_CENSUS_DIR", str(tmp_path))
    code = "from attnkit.engines.vllm_plugin import register; register()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(package), *filter(None, sys.path)))}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert "vLLM's workers are built otherwise: AttributeError" in read(tmp_path).problems[0]


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
def test_a_backend_that_is_swapped_after_the_census_is_caught(tmp_path: Path) -> None:
    """Real vLLM, in whose workers another plugin takes the place of CPU_ATTN."""
    from attnkit.engines.tiny_model import make_tiny_model

    make_tiny_model(model := tmp_path / "tiny")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    files = {name: str(tmp_path / name.lower()) for name in ("REPORT", "READY", "METRICS")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ATTNKIT_", "VLLM_"))}
    environment |= {f"ATTNKIT_{name}": path for name, path in files.items()}
    environment |= {"PYTHONPATH": os.pathsep.join((str(PLUGIN), *filter(None, sys.path))), "VLLM_CPU_KVCACHE_SPACE": "1"}
    serve = ("vllm", "serve", str(model), "--enforce-eager", "--max-model-len", "256", "--port", port)
    command = [sys.executable, "-m", "attnkit.cli", "boot", "--level", "quick", "--", *serve]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 1, done.stderr[-3000:]
    report = json.loads(Path(files["REPORT"]).read_text("utf-8"))
    assert report["verdict"] == "pass", "what was validated is vLLM's own"
    assert "run swapped.Swapped with swapped.SwappedImpl as CPU_ATTN" in report["error"]
    assert '"event": "ready"' not in done.stdout
