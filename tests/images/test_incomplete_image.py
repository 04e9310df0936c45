"""An image that lacks one of its precompiled kernels is not built."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from images import IMAGES
from images.builder import base, build, platforms
from images.builder.container_engine import EngineError

pytestmark = [pytest.mark.docker, pytest.mark.slow]
BIG = [pytest.mark.on_demand]

LOSES_ONE = """\
FROM bake-{kind} AS lossy
RUN lost="$(find /layer/opt/attnkit-kernels -type f ! -name manifest.json | sort | head -1)"; rm "$lost"

FROM runtime AS complete-{kind}
COPY --from=lossy /layer/ /
"""


@pytest.mark.parametrize("name", ["cpu", pytest.param("tpu", marks=BIG), pytest.param("cuda-turing", marks=BIG)])
def test_one_kernel_less_fails_the_build_of_the_image(name: str, repo_root: Path, tmp_path: Path) -> None:
    """The image is built; with one step more, which removes one file after the bake, its build ends at the count."""
    subprocess.run(["make", "image", f"PLATFORM={name}"], cwd=repo_root, check=True)
    platform = platforms.load()[name]
    text = (IMAGES / "Dockerfile").read_text(encoding="utf-8")
    whole = f"FROM runtime AS complete-{platform.kernels}\nCOPY --from=bake-{platform.kernels} /layer/ /\n"
    assert text.count(whole) == 1
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(text.replace(whole, LOSES_ONE.format(kind=platform.kernels)), encoding="utf-8")
    arguments = build.build_arguments(platform, base.base_image(platform.base))
    options = ["--progress", "plain", "--target", "checked", "-f", str(dockerfile)]
    with pytest.raises(EngineError, match=r"problem\(s\): (?s:.*) is missing"):
        build.docker_build(build.STAGE / name, arguments, *options)
