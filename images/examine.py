#!/usr/bin/env python3
"""Looks into a CUDA image on a machine without a GPU; writes docs/reports/images/PLATFORM.json: `examine.py PLATFORM …`.

Every check runs as an image's user does: not root, read-only root file system, no capabilities, no network. One that fails ends
the script with exit code 1, and nothing is written. `make images-test` builds and examines both.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import build
import engine
import platforms
from platforms import DescriptionError, Platform

REPORTS = engine.ROOT / "docs" / "reports" / "images"
LOCKED_DOWN = ("--read-only", "--tmpfs", "/tmp:exec", "--tmpfs", "/run/attnkit", "--cap-drop", "ALL", "--network", "none")
NO_NEW = ("--security-opt", "no-new-privileges")
COMPILERS = "cc gcc g++ c++ clang tcc ld as nvcc make cmake pip pip3 curl wget git"
PACKAGES = ("torch", "triton", "vllm", "flashinfer-python", "transformers", "nvidia-cuda-runtime", "nvidia-cudnn-cu13")
VERSIONS = f"""
import importlib.metadata as m, json, platform
print(json.dumps({{"python": platform.python_version(), **{{name: m.version(name) for name in {PACKAGES!r}}}}}))
"""
SERVES = """
import torch, vllm, transformers
import vllm.entrypoints.openai.api_server, vllm.v1.engine.core, vllm.v1.worker.gpu_worker, vllm.v1.worker.gpu_model_runner
import vllm.v1.attention.backends.triton_attn, vllm.v1.attention.backends.flash_attn, vllm.model_executor.models.llama
import os
print("imported", vllm.__version__, torch.__version__, os.getuid())
"""
C_MODULE = """
import sys
from triton.runtime import build
build._load_module_from_path = lambda name, path: sys.exit("found " + path)
from triton.backends.nvidia import driver
driver.CudaUtils()
"""


class ExamineError(Exception):
    """A check failed; the message says which and shows what was printed."""


def run(image: str, *command: str, user: str = "", code: int = 0) -> str:
    """Run a command in the image, locked down; what it printed. ExamineError where its exit code is another."""
    options = [*LOCKED_DOWN, *NO_NEW, *(("--user", user) if user else ())]
    entry = ("--entrypoint", command[0]) if command else ()
    done = subprocess.run(
        [engine.client(), "run", "--rm", *options, *entry, image, *command[1:]], capture_output=True, text=True, check=False
    )
    if done.returncode != code:
        shown = (done.stdout + done.stderr)[-2000:]
        raise ExamineError(f"{' '.join(command) or 'attnkit boot'} ended with {done.returncode}, not {code}:\n{shown}")
    return done.stdout + done.stderr


def must(condition: bool, what: str, shown: str) -> None:
    """ExamineError where the condition does not hold."""
    if not condition:
        raise ExamineError(f"{what}:\n{shown[-2000:]}")


def layers(image: str) -> list[dict[str, Any]]:
    """Sizes of the layers, lowest first, and what made them."""
    command = [engine.client(), "history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", image]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line.split("\t") for line in reversed(lines)]
    digests = json.loads(build.inspect(image, "{{json .RootFS.Layers}}"))
    # A step with content makes a layer; WORKDIR makes an empty one.
    kept = [int(size) for size, made in found if int(size) or made.startswith("WORKDIR")]
    names = ("system", "environment (engine, torch, CUDA libraries)", "kernels compiled ahead", "attnkit", "bill of materials")
    if len(kept) != len(digests) or len([size for size in kept if size]) != len(names):
        raise ExamineError(f"{image} has {len(digests)} layers, sizes {kept}; expected {len(names)} that hold something")
    filled = [(size, digest) for size, digest in zip(kept, digests, strict=True) if size]
    return [{"what": name, "bytes": size, "digest": digest} for name, (size, digest) in zip(names, filled, strict=True)]


def examine(platform: Platform) -> dict[str, Any]:
    """The report of a platform's image.

    Raises:
        ExamineError: a check failed.
    """
    image = build.tags(platform)[1]
    expected = set(platform.targets)
    kernels = json.loads(run(image, "cat", "/usr/share/attnkit/kernels.json"))
    must(expected <= set(kernels["kernels"]), "a target has no kernels", str(kernels))
    verified = run(image, "attnkit", "kernels", "verify", "--target", ",".join(platform.targets))
    must(f"{sum(kernels['kernels'].values())} kernels" in verified, "another number of kernels", verified)
    boot = run(image, code=3)
    must(f"no device: this is the {platform.name} image" in boot, "the boot does not say why", boot)
    imported = [run(image, "python", "-c", SERVES, user=user) for user in ("", "4242:0")]
    must("imported" in imported[0] and " 4242" in imported[1], "the engine was not imported", "".join(imported))
    module = run(image, "python", "-c", C_MODULE, code=1)
    must("found /opt/attnkit-kernels/" in module, "Triton's C module is not found in the bake", module)
    script = f"for n in {COMPILERS}; do command -v $n && echo found; done; true"
    must(not (compilers := run(image, "sh", "-c", script)), "a compiler or an installer is in it", compilers)
    shipped = json.loads(build.inspect(image, "{{json .Config.Labels}}"))
    return {
        "kind": "image",
        "platform": platform.name,
        "command": f"make images-test (images/examine.py {platform.name})",
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "revision": shipped["org.opencontainers.image.revision"],
        "image": {"id": build.inspect(image, "{{.Id}}"), "bytes": int(build.inspect(image, "{{.Size}}"))},
        "targets": list(platform.targets),
        "layers": layers(image),
        "kernels": kernels,
        "versions": json.loads(run(image, "python", "-c", VERSIONS)),
        "checks": {
            "kernels verified in the image": verified.strip().splitlines()[-1],
            "boot without a device": "exit code 3: " + boot.strip().splitlines()[-1].removeprefix("error: "),
            "the engine imports, as UID 10001 and as another, on a read-only root file system": next(
                line for line in imported[1].splitlines() if line.startswith("imported")
            ),
            "Triton's C module comes from the bake": module.strip().splitlines()[-1],
            "no compiler, no installer": COMPILERS,
        },
        "not_run": "no GPU: no kernel was launched, and vLLM served nothing, from this image",
        "official_image_bytes": None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="PLATFORM", help="platforms whose images are there")
    args = parser.parse_args(argv)
    try:
        known = platforms.load()
        for name in args.names:
            report = examine(platforms.find(name, known))
            REPORTS.mkdir(parents=True, exist_ok=True)
            path = REPORTS / f"{name}.json"
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            print(
                f"[images-test] {name}: {report['image']['bytes'] / 1e6:.0f} MB, {report['kernels']['kernels']} -> {path.name}"
            )
    except DescriptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ExamineError as error:
        print(f"failed: {name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
