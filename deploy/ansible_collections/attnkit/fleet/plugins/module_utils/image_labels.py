"""The labels of an image, from the node's Docker if it has the image, else from the registry, without pulling anything."""

from __future__ import annotations

import json
import platform
import ssl
import urllib.request
from pathlib import Path
from typing import Any

from .docker_api import Docker

MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
)
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def registry_of(image: str) -> str:
    """The registry's host and port in a reference, as Docker reads it."""
    host = image.split("/", 1)[0]
    named = "/" in image and ("." in host or ":" in host or host == "localhost")
    return host if named else "registry-1.docker.io"


def tls_context(host: str) -> ssl.SSLContext:
    """What Docker trusts for this registry: its own certs.d and the system's authorities."""
    ca = Path("/etc/docker/certs.d", host, "ca.crt")
    return ssl.create_default_context(cafile=ca if ca.exists() else None)


def labels(docker: Docker, image: str, timeout: float = 10.0) -> dict[str, str]:
    """The image's labels.

    Args:
        docker: the node's Docker.
        image: reference with a digest.
        timeout: seconds for each of the registry's answers.

    Raises:
        OSError: the registry did not answer, or requires credentials that only Docker has.
        ValueError, KeyError: its answer is not a manifest.
    """
    there = docker.get(f"/images/{image}/json")
    if there is not None:
        return dict(there["Config"].get("Labels") or {})
    host = registry_of(image)
    name, _, digest = image.removeprefix(f"{host}/").partition("@")
    return _from_registry(host, name, digest, timeout)


def _from_registry(host: str, name: str, digest: str, timeout: float) -> dict[str, str]:
    def get(kind: str, reference: str) -> Any:
        request = urllib.request.Request(
            f"https://{host}/v2/{name}/{kind}/{reference}",
            headers={"Accept": ", ".join(MANIFESTS)} if kind == "manifests" else {},
        )
        with urllib.request.urlopen(request, timeout=timeout, context=tls_context(host)) as answer:
            return json.load(answer)

    manifest = get("manifests", digest)
    if "manifests" in manifest:
        machine = ARCHITECTURES.get(platform.machine(), platform.machine())
        digest = next(m["digest"] for m in manifest["manifests"] if m.get("platform", {}).get("architecture") == machine)
        manifest = get("manifests", digest)
    config = get("blobs", manifest["config"]["digest"])
    return dict((config.get("config") or {}).get("Labels") or {})
