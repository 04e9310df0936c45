"""An image that lacks one of the kernels compiled ahead is not built."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import base
import build
import engine
import platforms
import pytest

pytestmark = [pytest.mark.docker, pytest.mark.slow]
BIG = [pytest.mark.on_demand]

LOSES_ONE = """\
FROM bake-{kind} AS lossy
RUN lost="$(find /layer/opt/attnkit-kernels -type f ! -name manifest.json | sort | head -1)"; rm "$lost"

FROM runtime AS complete-{kind}
COPY --from=lossy /layer/ /
"""


def _build(platform: platforms.Platform, context: Path, dockerfile: Path, secrets: Path) -> subprocess.CompletedProcess[str]:
    """The stages of an image up to the count of its kernels, from another Dockerfile; no image is named."""
    command = [engine.client(), "build", "--progress", "plain", "--target", "checked", "-f", str(dockerfile)]
    for key, value in build.build_arguments(platform, base.base_image(platform.base)).items():
        command += ["--build-arg", f"{key}={value}"]
    for key, path in build.secrets(secrets).items():
        command += ["--secret", f"id={key},src={path}"]
    variables = {**os.environ, "DOCKER_BUILDKIT": "1"}
    return subprocess.run([*command, str(context)], capture_output=True, text=True, env=variables, check=False)


@pytest.mark.parametrize("name", ["cpu", pytest.param("tpu", marks=BIG), pytest.param("cuda-turing", marks=BIG)])
def test_one_kernel_less_fails_the_build_of_the_image(name: str, repo_root: Path, tmp_path: Path) -> None:
    """The image is built; with one step more, which removes one file after the bake, its build ends at the count."""
    subprocess.run(["make", "image", f"PLATFORM={name}"], cwd=repo_root, check=True)
    platform = platforms.load()[name]
    text = (build.IMAGES / "Dockerfile").read_text(encoding="utf-8")
    whole = f"FROM runtime AS complete-{platform.kernels}\nCOPY --from=bake-{platform.kernels} /layer/ /\n"
    assert text.count(whole) == 1
    for label, content in (("whole", text), ("lossy", text.replace(whole, LOSES_ONE.format(kind=platform.kernels)))):
        (tmp_path / label).write_text(content, encoding="utf-8")
    done = _build(platform, build.STAGE / name, tmp_path / "whole", tmp_path / "secrets")
    assert done.returncode == 0, done.stderr[-3000:]
    done = _build(platform, build.STAGE / name, tmp_path / "lossy", tmp_path / "secrets")
    assert done.returncode != 0
    assert "problem(s): " in done.stderr and " is missing" in done.stderr, done.stderr[-3000:]
