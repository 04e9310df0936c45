"""Facts about the host that a report needs beside its devices."""

from __future__ import annotations

import os

from attnkit.hardware import cpu, nvidia
from attnkit.hardware.tree import Tree

_CONTAINER_MARKS = (("docker", "/docker"), ("kubernetes", "/kubepods"), ("podman", "libpod"), ("lxc", "/lxc/"))


def facts(tree: Tree) -> dict[str, str]:
    """kernel, os, hostname, machine, container and driver versions; a fact that cannot be read is left out."""
    release = tree.fields("etc/os-release") or tree.fields("usr/lib/os-release")
    found = {
        "kernel": tree.text("proc/sys/kernel/osrelease"),
        "os": release.get("PRETTY_NAME") or release.get("NAME"),
        "hostname": tree.text("proc/sys/kernel/hostname") or tree.text("etc/hostname"),
        "machine": cpu.machine(tree),
        "container": container(tree),
        "nvidia_driver": nvidia.driver_version(tree),
        "amdgpu_driver": tree.text("sys/module/amdgpu/version"),
    }
    return {key: value for key, value in found.items() if value}


def container(tree: Tree) -> str:
    """docker, podman, kubernetes, lxc …, or "none". A recorded tree has no environment, so only its files count."""
    if tree.exists(".dockerenv"):
        return "docker"
    if tree.exists("run/.containerenv"):
        return "podman"
    if tree.live and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if tree.live and os.environ.get("container"):  # noqa: SIM112  (systemd-nspawn and podman spell it so)
        return os.environ["container"]  # noqa: SIM112
    groups = tree.text("proc/1/cgroup") or ""
    return next((name for name, mark in _CONTAINER_MARKS if mark in groups), "none")
