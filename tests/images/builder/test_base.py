"""The base image: which mirror it is bootstrapped from."""

from __future__ import annotations

import pytest

from images.builder import base


def test_a_given_mirror_replaces_the_machines_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNKIT_APT_MIRROR", "http://mirror.example/debian")
    monkeypatch.delenv("ATTNKIT_APT_SECURITY_MIRROR", raising=False)
    assert base.mirror_lines() == ["deb http://mirror.example/debian bookworm main"]
    monkeypatch.setenv("ATTNKIT_APT_SECURITY_MIRROR", "http://mirror.example/security")
    assert base.mirror_lines()[1] == "deb http://mirror.example/security bookworm-security main"
