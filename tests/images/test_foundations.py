"""The path of vendors' base images, on a stand-in: our packages go on top of the base's own layers, which stay shared."""

from __future__ import annotations

import os
import subprocess
import uuid

import base
import build
import engine
import platforms
import pytest
import rebuild

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.mark.parametrize("name", ["rocm", "xpu"])
def test_a_vendors_base_keeps_its_layers(cpu_image: str, name: str) -> None:
    """The platform's own arguments, with the Debian base of the cpu image in place of its vendor's."""
    described = platforms.load()[name]
    arguments = build.build_arguments(described, base.base_image(platforms.load()["cpu"].base))
    assert arguments["FOUNDATION"] == "system"
    tag = f"attnkit-test:{uuid.uuid4().hex}"
    command = [engine.client(), "build", "-q", "--target", "base", "-t", tag]
    command += [part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")]
    command += [
        part for key, path in build.secrets(build.STAGE / "secrets").items() for part in ("--secret", f"id={key},src={path}")
    ]
    done = subprocess.run(
        [*command, str(build.STAGE / "cpu")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    try:
        below = rebuild.layers(arguments["BASE"])
        assert rebuild.layers(tag)[: len(below)] == below
        script = "grep -c ^attnkit:x:10001:0: /etc/passwd; stat -c '%u:%g %a' /run/attnkit; ls /run/build /var/lib/apt/lists"
        found = subprocess.run(
            [engine.client(), "run", "--rm", "--network", "none", tag, "sh", "-c", script],
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.stdout.splitlines()[:2] == ["1", "10001:0 2775"]
        assert "/run/build" in found.stderr, "what belongs to the building machine is gone"
    finally:
        subprocess.run([engine.client(), "rmi", tag], capture_output=True, check=False)


def test_the_flat_foundation_has_one_layer(cpu_image: str) -> None:
    """The others start from one layer of ours, whose times are fixed, and nothing of the base's."""
    assert not set(rebuild.layers(cpu_image)) & set(rebuild.layers(base.base_image(platforms.load()["cpu"].base)))
