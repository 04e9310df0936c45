"""Hostile inputs for everything that reads what others wrote: `python -m tools.fuzz.inputs --draws 50000 --seed 1`.

Real files (model configurations, profiles, a boot report, a manifest, hardware trees), command lines and engine answers are
mutated; each must be taken or refused with an error of attnkit's, within seconds and without growing memory. A failure prints
its kind, seed and number: `--only KIND --seed S --draws N` draws it again.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import random
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attnkit.errors import AttnkitError

ROOT = Path(__file__).resolve().parents[2]
MAX_SECONDS = 5.0
MAX_MIB = 300
Draw = random.Random
Kind = Callable[[Draw, Path], None]

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**12, -(10**30), 10**400, 0.5, 1e308, -0.0, "", " ", "4096", "false", "null",
    "²", "NaN", "../../etc/passwd", "a\0b", "\x1b[31m", "[bold]x[/]", "n" * 300, "é😀", "\u202e", [], {}, [[]], {"": None},
    [None], ["full_attention"], {"a": {"b": {"c": 1}}}, "full_atention", "float17", "-1", "http://u:p@h/",
)  # fmt: skip

PIECES = (b"[" * 3000, b'"', b"{", b"}", b"\xff", b"\0", b"9" * 5000, b"&a [*a]", b"!!python/x ", b"\n", b": ")


def odd(draw: Draw) -> Any:
    """A value that nobody expects, its own copy: it may be mutated further."""
    return copy.deepcopy(draw.choice(ODD))


def mutate_tree(draw: Draw, document: Any, times: int = 3) -> Any:
    """A document with a few of its values replaced, removed, doubled or renamed."""
    document = copy.deepcopy(document)
    for _ in range(draw.randint(1, times)):
        node: Any = document
        path: list[tuple[Any, Any]] = []
        while isinstance(node, dict | list) and node and (not path or draw.random() < 0.75):
            key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
            path.append((node, key))
            node = node[key]
        if not path:
            return odd(draw)
        holder, key = path[-1]
        how = draw.random()
        if how < 0.6:
            holder[key] = odd(draw)
        elif how < 0.75:
            del holder[key]
        elif isinstance(holder, dict):
            holder[f"{key}{draw.choice(['', 's', '_', ' '])}"] = holder.pop(key)
        else:
            holder.append(copy.deepcopy(holder[key]))
    return document


def mutate_text(draw: Draw, text: str) -> bytes:
    """A text with bytes changed, a piece cut, doubled or inserted."""
    data = bytearray(text.encode("utf-8", "replace"))
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        piece = draw.choice(
            (b"[" * 3000, b'"', b"{", b"}", b"\xff", b"\0", b"9" * 5000, b"&a [*a]", b"!!python/x ", b"\n", b": ")
        )
        how = draw.random()
        if how < 0.4:
            data[at:at] = piece
        elif how < 0.6:
            del data[at : at + draw.randint(1, 200)]
        elif how < 0.8:
            data[at:at] = data[at : at + 300]
        elif data:
            data[at % len(data)] = draw.randrange(256)
    return bytes(data)


def dumped(draw: Draw, document: Any) -> bytes:
    """A mutated document as JSON, sometimes with its text mutated too."""
    text = json.dumps(mutate_tree(draw, document), ensure_ascii=draw.random() < 0.5)
    return mutate_text(draw, text) if draw.random() < 0.2 else text.encode("utf-8", "replace")


def models(draw: Draw, folder: Path) -> None:
    """config.json of a model."""
    from attnkit.select.model_config import need_from_config

    source = draw.choice(sorted((ROOT / "attnkit/data/models").glob("*.json")))
    path = folder / "config.json"
    path.write_bytes(dumped(draw, json.loads(source.read_text(encoding="utf-8"))))
    need_from_config(str(path))


def profiles(draw: Draw, folder: Path) -> None:
    """A node's, a workload's or a family's profile."""
    from attnkit.profiles.schema import Families, NodeProfile, WorkloadProfile
    from attnkit.profiles.strict_yaml import read_model

    kinds: dict[str, Any] = {"nodes": NodeProfile, "workloads": WorkloadProfile, "": Families}
    source = draw.choice(sorted((ROOT / "profiles").rglob("*.yaml")))
    path = folder / source.name
    path.write_bytes(mutate_text(draw, source.read_text(encoding="utf-8")))
    name = source.parent.name if source.parent.name in kinds else ""
    read_model(path, kinds[name], context={"file": path.stem, "workloads": ("text",)})


def report_document() -> dict[str, Any]:
    """A small boot report with every part."""
    from attnkit.boot.report import BootReport, EngineReport
    from attnkit.hardware.device import Detection, Device
    from attnkit.selftest.results import CaseResult, Verdict

    device = Device("cpu", "cpu", "CPU", "x86_64")
    cases = (CaseResult("a", "b", "pass", "", "k", 0.1, 1.0), CaseResult("c", "d", "fail", "wrong", "k", 2.0, 1.0))
    made = BootReport(
        attnkit_version="0", created="2026-01-01T00:00:00Z", host={"hostname": "h"}, node_type="cpu",
        node_type_source="detected", detection=Detection((device,), ()), verdict="fail",
        selftest=[Verdict("B", "p", "d", "quick", "fail", cases, layer="paged")],
        engine=EngineReport(command=["a"], argv=["a"], env={"A": "1"}, last_output=["x"]), versions={"torch": "2"},
    )  # fmt: skip
    made.summarise()
    document: dict[str, Any] = json.loads(made.text())
    return document


def reports(draw: Draw, folder: Path) -> None:
    """A boot report: read, shown, compared, and written in every form."""
    from attnkit.boot.metrics import render_metrics
    from attnkit.boot.report import load_report, parse_report
    from attnkit.cli.report_compare import differences
    from attnkit.cli.report_junit import junit_text
    from attnkit.cli.report_page import render_html
    from attnkit.cli.report_tables import show_report

    whole = report_document()
    path = folder / "report.json"
    path.write_bytes(dumped(draw, {**whole, "schema_version": draw.choice((1, 2))}))
    found = load_report(path)
    parse_report(json.loads(found.text()), "again")
    render_metrics(found)
    junit_text(found)
    differences(parse_report(whole, "whole"), found)
    if draw.random() < 0.1:
        render_html(found)
        with contextlib.redirect_stdout(io.StringIO()):
            show_report(found, everything=True)


def manifests(draw: Draw, folder: Path) -> None:
    """The manifest of a kernel directory."""
    from attnkit.kernels.aot.verify import verify
    from attnkit.kernels.pallas.ahead import read

    kernel = {"target": "sm_90", "name": "k", "kernel": "k", "key": "K", "binary": "b", "files": {"b": [1, "x"]}}
    triton = {"triton": "3", "targets": ["sm_90"], "geometries": [], "kernels": [kernel], "launchers": {"L/x.so": [1, "y"]}}
    signature = {
        "query": [1, 2], "dtype": "float16", "key_cache": [1], "value_cache": [1], "cache_dtype": "x", "block_table": [1],
        "max_query_len": 1, "max_seq_len": 1, "softmax_scale": 1.0, "causal": True, "window": [0, 0], "softcap": 0.0,
        "alibi": False, "sinks": False,
    }  # fmt: skip
    module = {"name": "m", "bytes": 1, "digest": "d", "kernels": 1, "signature": signature}
    pallas = {"jax": "0", "targets": ["tpu-v5e"], "level": "quick", "kernels": [module], "schema": 1}
    own = draw.random() < 0.7
    (folder / "manifest.json").write_bytes(dumped(draw, {**triton, "schema": 2} if own else pallas))
    if own:
        verify(folder, planned=False)
    else:
        read(folder)


def trees(draw: Draw, folder: Path) -> None:
    """A machine's sys and proc with one file changed."""
    from attnkit.hardware import detect
    from attnkit.profiles.match import match_node

    source = draw.choice(sorted((ROOT / "tests/data/trees").glob("*/")))
    root = folder / source.name
    if not root.exists():
        shutil.copytree(source, root, symlinks=True)
    path = draw.choice(sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink()))
    before = path.read_bytes()
    path.write_bytes(mutate_text(draw, before.decode("utf-8", "replace")))
    try:
        match_node(detect(root, {}))
    finally:
        path.write_bytes(before)


WORDS = (
    "vllm", "serve", "model", "python", "-m", "vllm.entrypoints.openai.api_server", "--port", "--host", "--block-size",
    "--dtype", "--attention-config", "--attention-backend", "--kv-cache-dtype", "--api-key", "--tensor-parallel-size", "-tp",
    "--", "=", "--block-size=²", "8000", "99999999999999999999", "-1", "fp8", '{"backend": 1}', "[" * 2000, "TORCH_SDPA",
    "\udcff", "::", "", "--ssl-certfile", "0.0.0.0", "half", "--pipeline-parallel-size=x", "--data-parallel-size",
    "--gpu-memory-utilization", "nan",
)  # fmt: skip


def commands(draw: Draw, folder: Path) -> None:
    """An engine's command line."""
    from attnkit.boot.redact import Redactor
    from attnkit.engines.vllm.command import explicit_backend, recognise
    from attnkit.engines.vllm.parallel import memory_share, parallelism
    from attnkit.engines.web import check_url

    head = draw.choice((("vllm", "serve"), ("python3", "-m", "vllm.entrypoints.openai.api_server"), ()))
    argv = [*head, *(str(draw.choice((*WORDS, *ODD))) for _ in range(draw.randint(0, 8)))]
    Redactor(argv, {"HF_TOKEN": str(draw.choice(ODD))}).plain({"argv": argv, "text": " ".join(argv)})
    command = recognise(argv)
    if command is not None:
        explicit_backend(None, command, {})
        command.overrides()
        parallelism(command, ())
        memory_share(command, ())
        check_url(command.health_url, "--port")


def cli(draw: Draw, folder: Path) -> None:
    """attnkit's own command line."""
    from attnkit.cli import main

    names = ("detect", "backends", "select", "resolve", "report", "kernels", "boot", "")
    options = (
        "--root", "--node", "--model", "--workload", "--backend", "--device", "--vllm", "--platform", "--json", "--target",
        "--dir", "verify", "list", "--all", "--html", "--junit", "h100", "llama-3", "text", "sm_90", "0.33.0", "cuda",
        "/dev/zero",
    )  # fmt: skip
    argv = [draw.choice(names), *(str(draw.choice((*options, *options, *ODD))) for _ in range(draw.randint(0, 5)))]
    if argv[0] == "boot":  # would test this machine
        argv[1:1] = ["--selftest-timeout", "inf", "--report", f"{folder}/r.json", "--ready", f"{folder}/y.json"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main([a for a in argv if a])
        except SystemExit as end:
            if end.code not in (0, 1, 2, 3, 4, None):
                raise RuntimeError(f"exit code {end.code}") from None


class _Engine:
    """A server on this machine that says what it is told to, byte for byte."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/health"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(2)
                connection.recv(65536)
                connection.sendall(self.answers.pop(0) if self.answers else b"")


def http(draw: Draw, body: bytes) -> bytes:
    """An HTTP answer with a body, sometimes mutated."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
    return (mutate_text(draw, head) if draw.random() < 0.2 else head.encode()) + body


_engine: list[_Engine] = []


def answers(draw: Draw, folder: Path) -> None:
    """What an engine answers to /v1/models and /v1/completions."""
    from attnkit.engines.openai import complete

    if not _engine:
        _engine.append(_Engine())
    models_document = {"data": [{"id": "tiny"}]}
    completion = {"choices": [{"text": "a"}], "usage": {"prompt_tokens": 7, "completion_tokens": 32}}
    first = json.dumps(models_document).encode() if draw.random() < 0.7 else dumped(draw, models_document)
    _engine[0].answers[:] = [http(draw, first), http(draw, dumped(draw, completion))]
    complete(_engine[0].url, api_key="k", timeout=2.0)


KINDS: dict[str, Kind] = {
    function.__name__: function for function in (models, profiles, reports, manifests, trees, commands, cli, answers)
}
WEIGHTS = {"trees": 1, "cli": 1, "answers": 4, "reports": 3}
"""How often a kind is drawn among eight; those that start more are drawn less."""


def run(draws: int, seed: int, only: str | None = None) -> Iterator[tuple[str, int, str, float]]:
    """Draw; for each, its kind, its number, "taken", "refused" or the traceback, and its seconds."""
    names = [only] if only else [name for name in KINDS for _ in range(WEIGHTS.get(name, 8))]
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary, name) for name in KINDS}
        for folder in folders.values():
            folder.mkdir()
        for number in range(draws):
            draw = random.Random(f"{seed}:{number}")
            name = draw.choice(names)
            draw = random.Random(f"{seed}:{number}:{name}")  # the same with --only
            started = time.monotonic()
            try:
                KINDS[name](draw, folders[name])
                outcome = "taken"
            except AttnkitError:
                outcome = "refused"
            except Exception:
                outcome = traceback.format_exc()
            yield name, number, outcome, time.monotonic() - started


def main(arguments: list[str] | None = None) -> int:
    """The command line: 1 where an input gave a traceback, took too long, or memory grew too far."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz.inputs", description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=sorted(KINDS))
    options = parser.parse_args(arguments)
    counts: Counter[tuple[str, str]] = Counter()
    slowest: dict[str, float] = {}
    problems = 0
    started = time.monotonic()
    for name, number, outcome, seconds in run(options.draws, options.seed, options.only):
        kind = outcome if outcome in ("taken", "refused") else "broken"
        counts[name, kind] += 1
        slowest[name] = max(slowest.get(name, 0.0), seconds)
        if kind == "broken" or seconds > MAX_SECONDS:
            problems += 1
            if problems <= 10:
                print(f"{name} {number} of seed {options.seed}: {seconds:.1f} s\n{outcome}", file=sys.stderr)
    # Not ru_maxrss: that of whoever started this process counts in it.
    mib = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))[1]) / 1024  # type: ignore[index]
    print(f"{'kind':<10} {'taken':>7} {'refused':>8} {'broken':>7} {'slowest':>9}")
    for name in sorted(slowest):
        row = [counts[name, kind] for kind in ("taken", "refused", "broken")]
        print(f"{name:<10} {row[0]:>7} {row[1]:>8} {row[2]:>7} {slowest[name]:>7.2f} s")
    total = sum(counts.values())
    print(f"{total} inputs in {time.monotonic() - started:.0f} s, at most {mib:.0f} MiB, {problems} problems")
    return 1 if problems or mib > MAX_MIB else 0


if __name__ == "__main__":
    sys.exit(main())
