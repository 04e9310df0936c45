"""The path of vendors' base images, on a stand-in: our packages go on top of the base's own layers, which stay shared."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from images.builder import base, build, platforms
from images.builder.container_engine import docker
from images.inspect import rebuild

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.mark.parametrize("name", ["rocm", "xpu"])
def test_a_vendors_base_keeps_its_layers(cpu_image: str, name: str) -> None:
    """The platform's own arguments, with the Debian base and the packages of the cpu image instead of its vendor's."""
    known = platforms.load()
    arguments = build.build_arguments(replace(known[name], packages=known["cpu"].packages), base.base_image(known["cpu"].base))
    assert arguments["FOUNDATION"] == "system"
    tag = f"attnkit-test:{uuid.uuid4().hex}"
    build.docker_build(build.STAGE / "cpu", arguments, "--target", "base", "-t", tag)
    try:
        below = rebuild.layers(arguments["BASE"])
        assert rebuild.layers(tag)[: len(below)] == below
        script = "grep -c ^attnkit:x:10001:0: /etc/passwd; stat -c '%u:%g %a' /run/attnkit; "
        script += "ls /run/build /var/lib/apt/lists 2>/dev/null; true"
        found = docker("run", "--rm", "--network", "none", tag, "sh", "-c", script).splitlines()
        assert found == ["1", "10001:0 2775", "/var/lib/apt/lists:"], "what belongs to the building machine is gone"
    finally:
        docker("rmi", tag)


def test_the_flat_foundation_has_one_layer(cpu_image: str) -> None:
    """The others start from one layer of ours, whose times are fixed, and nothing of the base's."""
    assert not set(rebuild.layers(cpu_image)) & set(rebuild.layers(base.base_image(platforms.load()["cpu"].base)))
