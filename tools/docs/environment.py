"""docs/reference/environment.md: every ATTNKIT_ variable, from the command line's options and a scan of the source.

A variable that the source knows and this file does not describe is an error, and so is the reverse.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tools.docs import cli
from tools.docs.markdown import cell, page, table

ROOT = Path(__file__).resolve().parents[2]
SCANNED = ("attnkit", "images", "deploy", "tools", "tests", "Makefile", ".ci")
VARIABLE = re.compile(r"(?<![A-Z_])ATTNKIT_[A-Z0-9_]*[A-Z0-9](?![A-Za-z_*])")

RUNTIME = {
    "ATTNKIT_CENSUS_DIR": "set by boot for its engine: where vLLM's workers say which layers they built; not to be set by hand",
    "ATTNKIT_CPU_ISA": "use a smaller instruction set than the processor has: `portable`, `avx2`, `avx512` or `avx512bf16`",
    "ATTNKIT_FLEET_SHOW_TASKS": "1: the fleet's playbooks show every task, too ([A fleet](../get-started/fleet.md))",
    "ATTNKIT_GPU_CODE": "architectures whose GPU code an image's libraries hold; set in CUDA images: boot refuses other GPUs",
    "ATTNKIT_KERNELS": "directory of precompiled kernels (`attnkit kernels build`); set in every image that has some",
    "ATTNKIT_PALLAS_INTERPRET": "1: run PALLAS kernels in the JAX interpreter, without a TPU",
    "ATTNKIT_PLATFORM": "the platform that an image was built for; set in every image, so that boot can name a wrong device",
    "ATTNKIT_PROFILES": "folders of profiles that add to the built-in ones ([how to](../how-to/add-a-node-type.md))",
    "ATTNKIT_VLLM_BACKEND": "attnkit's backend that computes attention inside vLLM ([Serving engines](../guides/engines.md))",
    "ATTNKIT_VLLM_TURING": "1: tensor cores for vLLM's own Triton kernels on Turing ([Turing](../guides/turing.md))",
}
BUILD = {
    "ATTNKIT_APT_MIRROR": "Debian mirror for image builds",
    "ATTNKIT_APT_SECURITY_MIRROR": "mirror of the security updates that belongs to it",
    "ATTNKIT_BASE_IMAGE": "base image to use instead of the one in images/platforms.yaml",
    "ATTNKIT_CA_BUNDLE": "CA bundle of a TLS-inspecting proxy, for image builds and locks",
    "ATTNKIT_WHEELS": "a folder of wheels that take precedence over the package index",
}
DEVELOPMENT = {
    "ATTNKIT_EQUAL_TOKENS_LOG": "file for the engines' logs of tools/engines/equal_tokens.py",
    "ATTNKIT_GPU_MEMORY": "share of GPU memory for the engines of tools/engines/equal_tokens.py",
    "ATTNKIT_LAB": "name prefix of the lab's containers and networks",
    "ATTNKIT_LAB_PORT": "host port of the lab's registry",
    "ATTNKIT_REQUIRE_DOCKER": "1: a missing container runtime fails the docker tests instead of skipping them",
    "ATTNKIT_TRITON_PYTHONS": "Python interpreters with other Triton versions, for tests/kernels_aot",
    "ATTNKIT_VLLM_WHEEL": "a vLLM wheel, for the tests that compile its Triton kernels",
}
NOT_VARIABLES = {"ATTNKIT_KERNEL": "a macro of the C++ kernels"}


def options() -> dict[str, tuple[str, str]]:
    """Variable to (options that it sets, what the first of them means)."""
    found: dict[str, tuple[str, str]] = {}
    for name, command in cli.commands():
        for parameter in command.params:
            first, *older = cli.variables(parameter)
            if not first:
                continue
            used, text = found.get(first, ("", parameter.help or ""))
            found[first] = (f"{used}, `{name} {parameter.opts[0]}`".lstrip(", "), text)
            found |= dict.fromkeys(older, ("", f"older name of `{first}`"))
    return found


def known_to_the_source() -> set[str]:
    """Every name of a variable in tracked files outside the documentation."""
    command = ["git", "ls-files", "-z", *SCANNED]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [ROOT / name for name in names if name and (ROOT / name).is_file() and (ROOT / name) != Path(__file__)]
    return {name for path in paths for name in VARIABLE.findall(path.read_text(encoding="utf-8", errors="replace"))}


def markdown() -> str:
    """The whole page.

    Raises:
        ValueError: a variable is not described here, or one is described that the source does not know.
    """
    by_option = options()
    described = {**RUNTIME, **BUILD, **DEVELOPMENT, **NOT_VARIABLES}
    known = known_to_the_source()
    if unknown := sorted(known - set(described) - set(by_option)):
        raise ValueError(f"describe in {Path(__file__).relative_to(ROOT)}: {', '.join(unknown)}")
    if gone := sorted(set(described) - known):
        raise ValueError(f"no longer in the source, remove from {Path(__file__).relative_to(ROOT)}: {', '.join(gone)}")
    rows = [(f"`{name}`", used, cell(text)) for name, (used, text) in sorted(by_option.items()) if name not in RUNTIME]
    rows += [(f"`{name}`", by_option.get(name, ("", ""))[0], text) for name, text in RUNTIME.items()]
    return page(
        "Environment variables",
        "## When attnkit runs",
        "",
        *table(("variable", "option", "meaning"), sorted(rows)),
        "",
        "`TRITON_INTERPRET=1` (of Triton) makes the Triton backends run in its interpreter, on a CPU.",
        "",
        "## When images are built",
        "",
        "How they are used: [Build images](../guides/build-images.md).",
        "",
        *table(("variable", "meaning"), ((f"`{name}`", text) for name, text in BUILD.items())),
        "",
        "## For development",
        "",
        *table(("variable", "meaning"), ((f"`{name}`", text) for name, text in DEVELOPMENT.items())),
    )
