"""Pushing without compression, into a registry that keeps what it gets and checks the digests."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from deploy.demo.registry import LAYER, Registry


class _Store(http.server.BaseHTTPRequestHandler):
    """The part of the distribution specification that a push needs."""

    server: Store

    def _answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        content = self.server.kept.get(self.path)
        if content is None:
            self._answer(404)
        else:
            self._answer(200, Docker_Content_Digest=f"sha256:{hashlib.sha256(content).hexdigest()}")

    def do_POST(self) -> None:
        self._answer(202, Location=f"{self.path}one?state=begun")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        place = urlsplit(self.path)
        asked = parse_qs(place.query)
        if "/manifests/" in place.path:
            self.server.kept[place.path] = content
        elif asked["state"] != ["begun"] or asked["digest"] != [f"sha256:{hashlib.sha256(content).hexdigest()}"]:
            return self._answer(400)
        else:
            self.server.kept[place.path.replace("uploads/one", asked["digest"][0])] = content
            self.server.uploads.append(asked["digest"][0])
        self._answer(201)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on stderr."""


class Store(http.server.ThreadingHTTPServer):
    """What was pushed, by path, and the digests of the blobs in the order of their uploads."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Store)
        self.kept: dict[str, bytes] = {}
        self.uploads: list[str] = []


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def _saved(path: Path, layers: list[bytes]) -> list[str]:
    """An archive as `docker save` makes it; the layers' diff IDs."""
    ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": ids}}).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": ["a:b"], "Layers": [f"{n}/layer.tar" for n in range(len(layers))]}]
    files = {f"{n}/layer.tar": layer for n, layer in enumerate(layers)} | {
        name: config,
        "manifest.json": json.dumps(manifest).encode(),
    }
    with tarfile.open(path, "w") as archive:
        for file, content in files.items():
            member = tarfile.TarInfo(file)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return ids


def test_layers_are_pushed_as_they_are_and_once(tmp_path: Path, store: Store) -> None:
    registry = Registry(f"http://127.0.0.1:{store.server_address[1]}", "attnkit/cpu", tmp_path / "unused.crt")
    base, ours, newer = (bytes([n]) * 2048 for n in (1, 2, 3))
    first = _saved(tmp_path / "first.tar", [base, ours])
    assert registry.digest("manifests", "one") is None
    digest = registry.push(tmp_path / "first.tar", "one")
    assert registry.digest("manifests", "one") == digest
    manifest = json.loads(store.kept["/v2/attnkit/cpu/manifests/one"])
    assert manifest["layers"] == [{"mediaType": LAYER, "digest": layer, "size": 2048} for layer in first]
    assert store.uploads == [*first, manifest["config"]["digest"]]

    store.uploads.clear()
    second = _saved(tmp_path / "second.tar", [base, newer])
    assert registry.push(tmp_path / "second.tar", "two") != digest
    assert store.uploads[:-1] == second[1:], "what it has is not pushed again"
