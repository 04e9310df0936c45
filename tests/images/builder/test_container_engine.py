"""Docker: which client is taken, and what is said where it cannot be started."""

from __future__ import annotations

from pathlib import Path

import pytest

from images.builder import container_engine


def _client(folder: Path, version: str, *, buildx: bool) -> Path:
    folder.mkdir()
    script = folder / "docker"
    script.write_text(f'#!/bin/sh\n[ "$1" = buildx ] && exit {0 if buildx else 1}\n[ "$1" = info ] && exit 1\necho {version}\n')
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("version", "buildx", "suits"), [("20.10.24", False, True), ("28.2.2", False, False), ("28.2.2", True, True)]
)
def test_a_client_must_support_buildkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, buildx: bool, suits: bool
) -> None:
    """20.10 has BuildKit built in; a newer client needs the plugin, and the next one on PATH is taken where it lacks it."""
    first = _client(tmp_path / "first", version, buildx=buildx)
    second = _client(tmp_path / "second", "20.10.24", buildx=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'first'}:{tmp_path / 'second'}:/bin")
    container_engine.client.cache_clear()
    try:
        assert container_engine.client() == str(first if suits else second)
    finally:
        container_engine.client.cache_clear()


def test_without_root_a_missing_docker_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert container_engine.main([]) == 2
    message = capsys.readouterr().err
    assert "no Docker daemon answers, and installing or starting one needs root: install Docker Engine" in message


def test_a_docker_host_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert container_engine.main([]) == 2
    assert f"no Docker daemon answers at DOCKER_HOST=unix://{tmp_path}/none.sock" in capsys.readouterr().err
